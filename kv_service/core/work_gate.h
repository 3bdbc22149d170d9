// Which calls work, and which are told to come back, when more want to than can be served in time.

#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_service/core/patience.h"

namespace fourierkv {

// A bounded number of places to work. Of clients that wait for one, that comes next which has had
// the least time (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996): whoever asks for
// little is served at once, however much others ask for. Of one client's calls, those that have
// begun go before others, each in order.
//
// A call that waits to begin is refused where it would be served late: after half of the time that
// it has, and after `burst`; or, once its client's queue has not been empty for that long, after
// `standing` ("controlled delay": Maurer, Fail at Scale, ACM Queue 13/8, 2015). So those who are
// admitted are answered in time. Not much earlier: a call that is refused costs a third of one that
// is served, and comes again. So a call beyond `max_calls` waits outside, for `standing` at most,
// as long as not too many do: otherwise clients that make a few more calls than they may would be
// refused, and come again, as fast as they can.
//
// Whoever sleeps for its client or a tier (Pause) for longer than `slice`, or holds a place for
// longer than `longest` for whatever reason, lends it to those who wait for one, and asks for one
// again when it next could (Continue). So nobody who is stuck holds up others. Thread safe; must
// outlive its calls.
class WorkGate {
 public:
  struct Options {
    int places = 1;       // > 0
    int max_calls = 512;  // at the same time, whatever they do; shared fairly (fair_share.h)
    int max_outside = 0;  // that wait until they are fewer; shared likewise
    absl::Duration burst = absl::Seconds(2);
    absl::Duration standing = absl::Milliseconds(500);
    absl::Duration slice = absl::Milliseconds(5);  // of a place, before it is others' turn
    absl::Duration longest = absl::Milliseconds(100);
    std::function<absl::Time()> clock = &absl::Now;
  };
  struct Stats {
    int calls = 0;
    int working = 0;  // of these, with a place
    int waiting = 0;
    int outside = 0;  // beyond these, waiting to be among them
    uint64_t refused_busy = 0;
    uint64_t refused_calls = 0;  // beyond max_calls or a share of it, also to make room for others
  };

 private:
  struct Client;

 public:
  // One call, from when it comes until this is destroyed. Used by one thread.
  class Call {
   public:
    // Returns when the call may work, or shall not: see status(). `client` is who shares the
    // machine with whom.
    Call(WorkGate* gate, const std::string& client, const Patience& patience);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // ResourceExhausted if it is refused; Patience::Over when that was over before it began.
    const absl::Status& status() const { return status_; }

    // What follows may wait for others.
    void Pause();
    // To be called after that, and after what takes long: goes on at once unless it is others'
    // turn, which it waits for; without a place when patience is over, since then it has only to
    // end.
    void Continue();

   private:
    friend class WorkGate;
    enum class State : uint8_t { kOutside, kAtDoor, kWaiting, kWorking };

    WorkGate* const gate_;
    const Patience patience_;
    absl::Status status_;
    // Guarded by the gate's mutex.
    std::shared_ptr<Client> client_;  // null: it is not counted, or no longer
    State state_ = State::kOutside;
    absl::Time since_;    // it works, or its time was last charged
    absl::Time lent_at_;  // if somebody waits then
    bool paused_ = false;
    pid_t thread_ = 0;
    std::condition_variable admitted_;
  };

  explicit WorkGate(Options options);

  // Call::Pause of the call that this thread works for, if there is one.
  static void PauseThisThread();

  Stats stats() const;

 private:
  using Lock = std::unique_lock<std::mutex>;

  std::shared_ptr<Client> ClientOf(const std::string& name);
  // Whether `client` may have one more call now (fair_share.h).
  bool HasRoomFor(const Client& client) const;
  // Refuses a call that waits of whoever has most, if that is more than `client` would have.
  bool MakeRoomFor(const Client& client);
  void Count(Client& client);
  // Counts `call`, at once or after a wait outside; false if it is not to be among the calls.
  bool Enter(Lock& lock, Call& call, absl::Time limit);
  // False if too many wait outside, or until `limit` or the end of patience nobody let it in.
  bool WaitOutside(Lock& lock, Call& call, absl::Time limit);
  // Counts those from outside for whom there is room now.
  void LetIn();
  absl::Status RefuseCall();
  // Waits in `queue` until there is a place for `call`; false when `limit` or patience is over, or
  // it made room for another.
  bool Wait(Lock& lock, Call& call, std::deque<Call*>& queue, absl::Time limit);
  // Gives free places to those whose turn it is, and those that were held for too long.
  void Admit(absl::Time now);
  std::shared_ptr<Client> Next() const;
  void Leave(Call& call, absl::Time now);
  // Lets somebody else look, if nobody does any more.
  void WakeWatcher();

  const Options options_;
  mutable std::mutex mutex_;  // guards what follows
  absl::flat_hash_map<std::string, std::shared_ptr<Client>> clients_;
  std::vector<Call*> working_;
  std::deque<Call*> outside_;  // in order
  double begun_ = 0;           // Client::used of whoever began last
  bool watched_ = false;       // one of those who wait looks for places that are held for too long
  Stats stats_;
};

}  // namespace fourierkv
