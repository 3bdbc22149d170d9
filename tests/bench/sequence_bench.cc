// Speed of the published form: encoding a prompt, attention of one token and of a chunk, and growth
// by a token, beside the same attention on a dense cache. Random data; milliseconds for all layers.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "compute/cache/dense_kv_cache.h"
#include "compute/cache/sequence_kv_cache.h"

namespace fourierkv {
namespace {

struct Options {
  int64_t tokens = 32768;
  int64_t max_new = 2048;
  KvGeometry geometry{.layers = 6, .kv_heads = 2, .head_dim = 128};
  int query_heads = 8;
  int chunk = 512;
  int threads = 0;
  int repeats = 10;
  SequenceScope scope;
};

double Milliseconds(const std::function<void()>& work) {
  const auto begun = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begun)
      .count();
}

// Four of five channels spectral.
CodecProfile Profile(const Options& o) {
  CodecProfile profile;
  profile.name = "bench";
  profile.geometry = o.geometry;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = o.scope;
  Band spectral{o.scope.states(), 16, {}}, resident{0, 16, {}};
  for (int d = 0; d < o.geometry.head_dim; ++d) {
    (d % 5 == 0 ? resident : spectral).channels.push_back(static_cast<uint16_t>(d));
  }
  profile.heads.assign(size_t{2} * o.geometry.layers * o.geometry.kv_heads,
                       HeadProfile{{spectral, resident}});
  return profile;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "sequence_bench: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}

void Append(KvCache& cache, int n, const std::vector<float>& rows) {
  for (int l = 0; l < cache.geometry().layers; ++l) {
    Check(cache.Append(l, n, rows.data(), rows.data()));
  }
}

// The best of `repeats`, over all layers; nothing is advanced.
double AttendTime(KvCache& cache, const Options& o, int n, int repeats,
                  const std::vector<float>& rows, const std::vector<float>& q) {
  std::vector<float> out(q.size());
  Append(cache, n, rows);
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    best = std::min(best, Milliseconds([&] {
                      for (int l = 0; l < o.geometry.layers; ++l) {
                        Check(cache.Attend(l, n, o.query_heads, q.data(), out.data()));
                      }
                    }));
  }
  return best;
}

int Run(const Options& o) {
  Check(Profile(o).Validate());
  const auto layout = std::make_shared<const SequenceLayout>(Profile(o));
  const auto pool = std::make_shared<ThreadPool>(o.threads);
  const auto backend = CreateCpuBackend(o.threads);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> rows(o.chunk * o.geometry.kv_heads * o.geometry.head_dim);
  std::vector<float> q(o.chunk * o.query_heads * o.geometry.head_dim);
  for (float& value : q) value = normal(random);

  auto dense = DenseKvCache::Create(o.geometry, backend.get(), o.tokens + o.max_new);
  Check(dense.status());
  for (int64_t left = o.tokens; left > 0;) {
    for (float& value : rows) value = normal(random);
    const int n = static_cast<int>(std::min<int64_t>(left, o.chunk));
    Append(**dense, n, rows);
    Check((*dense)->Advance(n));
    left -= n;
  }
  std::unique_ptr<SequenceKvCache> cache;
  const double encode = Milliseconds([&] {
    auto made = SequenceKvCache::FromDense(layout, backend.get(), pool, **dense, o.max_new);
    Check(made.status());
    cache = *std::move(made);
  });
  const nlohmann::json bytes = {
      {"dense", (*dense)->bytes()}, {"cache", cache->bytes()}, {"payload", cache->payload_bytes()}};
  nlohmann::json result = {{"tokens", o.tokens},
                           {"threads", pool->threads()},
                           {"peak_rescale", o.scope.peak_rescale},
                           {"bytes", bytes},
                           {"encode_ms", encode},
                           {"token_ms", AttendTime(*cache, o, 1, o.repeats, rows, q)},
                           {"dense_token_ms", AttendTime(**dense, o, 1, o.repeats, rows, q)},
                           {"chunk_ms", AttendTime(*cache, o, o.chunk, 1, rows, q)},
                           {"dense_chunk_ms", AttendTime(**dense, o, o.chunk, 1, rows, q)}};
  Append(*cache, 1, rows);
  result["grow_ms"] = Milliseconds([&] { Check(cache->Advance(1)); });
  std::printf("%s\n", result.dump(2).c_str());
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app{"Speed of whole-sequence caches on the CPU.", "sequence_bench"};
  fourierkv::Options o;
  app.add_option("--tokens", o.tokens)->check(CLI::Range(1, 1 << 19))->capture_default_str();
  app.add_option("--max-new", o.max_new)->check(CLI::Range(1024, 1 << 19))->capture_default_str();
  app.add_option("--layers", o.geometry.layers)->check(CLI::Range(1, 128))->capture_default_str();
  app.add_option("--kv-heads", o.geometry.kv_heads)
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--query-heads", o.query_heads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--chunk", o.chunk)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--threads", o.threads)->check(CLI::Range(0, 256))->capture_default_str();
  app.add_option("--repeats", o.repeats)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_flag("--peak-rescale", o.scope.peak_rescale);
  CLI11_PARSE(app, argc, argv);
  return fourierkv::Run(o);
}
