#include "kv_service/core/work_gate.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kv_service/core/fair_share.h"

namespace fourierkv {
namespace {

// Whether a call has ended. One that has not begun is woken, or costs nothing while it waits.
constexpr absl::Duration kLookEvery = absl::Milliseconds(20);
constexpr absl::Duration kLookEveryFresh = absl::Milliseconds(200);
// What a call is charged for when it begins, until it is known: so that a client whose turn it is
// does not get all places at once.
constexpr double kExpectedSeconds = 1e-3;
constexpr size_t kMostIdle = 256;

thread_local WorkGate::Call* this_thread = nullptr;

// Whether a thread of this process waits for something, and not for a CPU. On a machine with more
// to do than it can, time alone does not tell.
bool IsAsleep(pid_t thread) {
  const int fd = open(absl::StrCat("/proc/self/task/", thread, "/stat").c_str(), O_RDONLY);
  if (fd < 0) return true;
  char text[128];  // "123 (name of up to 15) S ..."
  const ssize_t size = read(fd, text, sizeof text);
  close(fd);
  const absl::string_view stat(text, size > 0 ? static_cast<size_t>(size) : 0);
  const size_t name_end = stat.rfind(") ");
  return name_end == absl::string_view::npos || stat.substr(name_end + 2, 1) != "R";
}

}  // namespace

struct WorkGate::Client {
  double used = 0;  // seconds of places, from where others were when it came
  int calls = 0;
  int outside = 0;          // beyond those
  std::deque<Call*> begun;  // that wait to go on
  std::deque<Call*> fresh;
  absl::Time fresh_since;  // there has always been one

  bool waits() const { return !begun.empty() || !fresh.empty(); }
  bool idle() const { return calls == 0 && outside == 0; }

  // Adds the time of one of its calls since that was done last. Who sleeps uses no place from when
  // others could have had it, whether or not there were any.
  void Charge(Call& call, absl::Time now) {
    const absl::Time until = call.paused_ ? std::min(now, call.lent_at_) : now;
    used += std::max(0.0, absl::ToDoubleSeconds(until - call.since_));
    call.since_ = now;
  }
};

WorkGate::WorkGate(Options options) : options_(std::move(options)) {}

WorkGate::Stats WorkGate::stats() const {
  const Lock lock(mutex_);
  Stats stats = stats_;
  stats.working = static_cast<int>(working_.size());
  stats.outside = static_cast<int>(outside_.size());
  return stats;
}

std::shared_ptr<WorkGate::Client> WorkGate::ClientOf(const std::string& name) {
  if (clients_.size() >= kMostIdle && !clients_.contains(name)) {
    absl::erase_if(clients_, [](const auto& entry) { return entry.second->idle(); });
  }
  std::shared_ptr<Client>& client = clients_[name];
  if (client == nullptr) client = std::make_shared<Client>();
  return client;
}

absl::Status WorkGate::RefuseCall() {
  ++stats_.refused_calls;
  return absl::ResourceExhaustedError(absl::StrCat(
      "the server has ", stats_.calls, " calls at the same time, of ", options_.max_calls,
      " (--max-calls), of which the last are for clients with few; retry later, or make fewer at "
      "once"));
}

bool WorkGate::HasRoomFor(const Client& client) const {
  return MayTake(client.calls, 1, options_.max_calls - stats_.calls);
}

bool WorkGate::MakeRoomFor(const Client& client) {
  Client* most = nullptr;
  for (const auto& [name, other] : clients_) {
    if (!other->fresh.empty() && (most == nullptr || other->calls > most->calls)) {
      most = other.get();
    }
  }
  if (most == nullptr || most->calls <= client.calls + 1) return false;
  Call& last = *most->fresh.back();
  most->fresh.pop_back();
  last.state_ = Call::State::kOutside;
  last.status_ = RefuseCall();
  last.client_ = nullptr;
  last.admitted_.notify_one();
  --most->calls;
  --stats_.calls;
  --stats_.waiting;
  return true;
}

void WorkGate::Count(Client& client) {
  ++client.calls;
  ++stats_.calls;
}

bool WorkGate::Enter(Lock& lock, Call& call, absl::Time limit) {
  Client& client = *call.client_;
  if (client.outside > 0 || !HasRoomFor(client)) {
    if (WaitOutside(lock, call, limit)) return true;
    if (call.patience_.over() || !(HasRoomFor(client) || MakeRoomFor(client))) return false;
  }
  Count(client);
  return true;
}

bool WorkGate::WaitOutside(Lock& lock, Call& call, absl::Time limit) {
  Client& client = *call.client_;
  const int free = options_.max_outside - static_cast<int>(outside_.size());
  if (!MayTake(client.outside, 1, free)) return false;
  call.state_ = Call::State::kAtDoor;
  outside_.push_back(&call);
  ++client.outside;
  while (call.state_ == Call::State::kAtDoor) {
    const absl::Time now = options_.clock();
    if (now >= limit || call.patience_.over()) break;
    call.admitted_.wait_for(lock,
                            absl::ToChronoNanoseconds(std::min(kLookEveryFresh, limit - now)));
  }
  if (call.state_ != Call::State::kAtDoor) return true;
  call.state_ = Call::State::kOutside;
  std::erase(outside_, &call);
  --client.outside;
  return false;
}

void WorkGate::LetIn() {
  for (auto it = outside_.begin(); it != outside_.end() && stats_.calls < options_.max_calls;) {
    Call& call = **it;
    Client& client = *call.client_;
    if (!HasRoomFor(client)) {
      ++it;
      continue;
    }
    it = outside_.erase(it);
    --client.outside;
    Count(client);
    call.state_ = Call::State::kOutside;
    call.admitted_.notify_one();
  }
}

std::shared_ptr<WorkGate::Client> WorkGate::Next() const {
  std::shared_ptr<Client> next;
  for (const auto& [name, client] : clients_) {
    if (client->waits() && (next == nullptr || client->used < next->used)) next = client;
  }
  return next;
}

void WorkGate::Admit(absl::Time now) {
  while (stats_.waiting > 0) {
    if (static_cast<int>(working_.size()) >= options_.places) {
      const auto first = std::ranges::min_element(working_, {}, &Call::lent_at_);
      Call& held = **first;
      if (now < held.lent_at_) return;
      if (held.paused_ && !IsAsleep(held.thread_)) {
        held.client_->Charge(held, now);
        held.lent_at_ = now + options_.slice;  // it has not come to wait yet, or does no more
        continue;
      }
      Leave(held, now);
    }
    const std::shared_ptr<Client> client = Next();
    std::deque<Call*>& queue = client->begun.empty() ? client->fresh : client->begun;
    Call* const call = queue.front();
    queue.pop_front();
    --stats_.waiting;
    begun_ = std::max(begun_, client->used);
    client->used += kExpectedSeconds;
    call->state_ = Call::State::kWorking;
    call->since_ = call->lent_at_ = absl::InfiniteFuture();  // until it wakes up
    working_.push_back(call);
    call->admitted_.notify_one();
  }
}

void WorkGate::Leave(Call& call, absl::Time now) {
  call.client_->Charge(call, now);
  call.client_->used -= kExpectedSeconds;
  call.state_ = Call::State::kOutside;
  std::erase(working_, &call);
}

void WorkGate::WakeWatcher() {
  if (watched_ || stats_.waiting == 0) return;
  const std::shared_ptr<Client> client = Next();
  (client->begun.empty() ? client->fresh : client->begun).front()->admitted_.notify_one();
}

bool WorkGate::Wait(Lock& lock, Call& call, std::deque<Call*>& queue, absl::Time limit) {
  // Time in which it asked for nothing is not saved up.
  if (!call.client_->waits()) call.client_->used = std::max(call.client_->used, begun_);
  call.state_ = Call::State::kWaiting;
  queue.push_back(&call);
  ++stats_.waiting;
  Admit(options_.clock());
  const bool fresh = &queue == &call.client_->fresh;
  while (call.state_ == Call::State::kWaiting) {
    const absl::Time now = options_.clock();
    if (now >= limit || call.patience_.over()) break;
    const bool watches = !std::exchange(watched_, true);
    const absl::Duration look = fresh ? kLookEveryFresh : kLookEvery;
    const absl::Duration pause =
        std::min(watches ? std::min(options_.slice, kLookEvery) : look, limit - now);
    call.admitted_.wait_for(lock, absl::ToChronoNanoseconds(pause));
    if (!watches) continue;
    watched_ = false;
    Admit(options_.clock());
  }
  if (call.state_ == Call::State::kWaiting) {
    std::erase(queue, &call);
    --stats_.waiting;
    call.state_ = Call::State::kOutside;
  }
  WakeWatcher();  // somebody who still waits
  if (call.state_ != Call::State::kWorking) return false;
  call.since_ = options_.clock();
  call.lent_at_ = call.since_ + options_.longest;
  call.paused_ = false;
  return true;
}

WorkGate::Call::Call(WorkGate* gate, const std::string& client, const Patience& patience)
    : gate_(gate), patience_(patience), status_(patience.Check()) {
  if (!status_.ok()) return;
  const Options& options = gate_->options_;
  Lock lock(gate_->mutex_);
  const std::shared_ptr<Client> shared = gate_->ClientOf(client);  // until its queue is left
  client_ = shared;
  const auto until = [&](absl::Time now, absl::Duration most) {
    return now + std::min(most, (patience_.deadline() - now) / 2);
  };
  if (!gate_->Enter(lock, *this, until(options.clock(), options.standing))) {
    client_ = nullptr;
    status_ = patience_.over() ? patience_.Over() : gate_->RefuseCall();
    return;
  }
  const absl::Time now = options.clock();
  if (client_->fresh.empty()) client_->fresh_since = now;
  const bool stands = now - client_->fresh_since > options.burst;
  const absl::Time limit = until(now, stands ? options.standing : options.burst);
  if (gate_->Wait(lock, *this, shared->fresh, limit)) {
    this_thread = this;
    thread_ = static_cast<pid_t>(syscall(SYS_gettid));
    return;
  }
  if (client_ == nullptr) return;
  status_ = patience_.Check();
  if (!status_.ok()) return;
  ++gate_->stats_.refused_busy;
  status_ = absl::ResourceExhaustedError(
      "the server has more to do than it can do in time; retry later, or elsewhere");
}

WorkGate::Call::~Call() {
  if (client_ == nullptr) return;
  if (this_thread == this) this_thread = nullptr;
  const Lock lock(gate_->mutex_);
  const absl::Time now = gate_->options_.clock();
  if (state_ == State::kWorking) gate_->Leave(*this, now);
  --client_->calls;
  --gate_->stats_.calls;
  gate_->LetIn();
  gate_->Admit(now);
}

void WorkGate::Call::Pause() {
  if (client_ == nullptr) return;
  const Lock lock(gate_->mutex_);
  lent_at_ = gate_->options_.clock() + gate_->options_.slice;
  paused_ = true;
}

void WorkGate::PauseThisThread() {
  if (this_thread != nullptr) this_thread->Pause();
}

void WorkGate::Call::Continue() {
  if (client_ == nullptr) return;
  Lock lock(gate_->mutex_);
  if (state_ == State::kWorking) {
    const absl::Time now = gate_->options_.clock();
    const bool over = now - since_ >= gate_->options_.slice;
    if (!over || gate_->stats_.waiting == 0) {
      if (over) {
        client_->Charge(*this, now);
        gate_->begun_ = std::max(gate_->begun_, client_->used);  // as if it had come again
      }
      lent_at_ = now + gate_->options_.longest;
      paused_ = false;
      return;
    }
    gate_->Leave(*this, now);
  }
  gate_->Wait(lock, *this, client_->begun, absl::InfiniteFuture());
}

}  // namespace fourierkv
