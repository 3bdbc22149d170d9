// Counters of the core, for an exporter to read at any time.

#pragma once

#include <atomic>
#include <cstdint>

namespace fourierkv {

// All counters only grow. Shared by the parts of one service; relaxed atomics.
struct StoreMetrics {
  using Counter = std::atomic<uint64_t>;

  Counter match_hits{0};    // segments asked for by Match and stored
  Counter match_misses{0};  // segments asked for by Match and not matched
  Counter read_hits{0};     // segments opened for reading and found in a wanted form
  Counter read_misses{0};
  Counter bytes_in{0};   // chunk payload accepted by puts
  Counter bytes_out{0};  // blobs handed to readers, headers included

  Counter puts_begun{0};
  Counter puts_committed{0};
  Counter puts_aborted{0};
  Counter segments_stored{0};
  Counter segments_deduplicated{0};
  Counter segments_deleted{0};

  Counter evicted_segments{0};
  Counter evicted_exact_forms{0};
  Counter evicted_bytes{0};
  Counter leases_granted{0};
  Counter leases_expired{0};
  Counter segments_expired{0};  // their time was over

  Counter encoded_dense_bytes{0};  // input of the encoder
  Counter encode_nanoseconds{0};
  Counter decoded_dense_bytes{0};  // output of the decoder
  Counter decode_nanoseconds{0};
  Counter lossless_encoded_dense_bytes{0};  // dense bytes made LOSSLESS
  Counter lossless_encode_nanoseconds{0};
  Counter lossless_decoded_dense_bytes{0};  // dense bytes made of LOSSLESS
  Counter lossless_decode_nanoseconds{0};
  Counter archive_encoded_dense_bytes{0};  // dense bytes made ARCHIVED
  Counter archive_encode_nanoseconds{0};   // on one core
  Counter archive_decoded_dense_bytes{0};  // dense bytes made of ARCHIVED
  Counter archive_decode_nanoseconds{0};
  Counter compacted_on_demand{0};    // segments encoded because a reader asked
  Counter error_bound_fallbacks{0};  // segments read in another form because of the reader's bound
  Counter error_bound_misses{0};     // segments missing because of it
  Counter corrupt_blobs{0};
  Counter chunk_checksum_errors{0};

  static void Add(Counter& counter, uint64_t n) { counter.fetch_add(n, std::memory_order_relaxed); }
};

}  // namespace fourierkv
