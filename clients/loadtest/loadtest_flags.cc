#include "clients/loadtest/loadtest_flags.h"

#include <CLI/CLI.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/support/flag_checks.h"

namespace fourierkv::loadtest {
namespace {

// CLI::Range would let NaN through.
CLI::Validator Between(double least, double most) {
  return CLI::Validator(
      [least, most](const std::string& text) {
        double value = 0;
        const bool right = absl::SimpleAtod(text, &value) && value >= least && value <= most;
        return right ? std::string()
                     : absl::StrCat("must be ", least, " to ", most, ", not ", text);
      },
      absl::StrCat("NUMBER in [", least, ", ", most, "]"));
}

void DeclareLoad(CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  app.add_option("--rate", o.rate, "Operations a second that are due, whatever the answers")
      ->check(Between(0.001, 1e7))
      ->capture_default_str();
  app.add_option("--arrival", flags.arrival, "When they are due: constant or poisson")
      ->check(CLI::IsMember({"constant", "poisson"}))
      ->capture_default_str();
  app.add_flag("--closed-loop", o.closed_loop,
               "Instead keep --concurrency operations in flight; hides stalls, finds the capacity");
  app.add_option("--concurrency", o.concurrency, "Most operations in flight")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--connections", o.connections, "TCP connections")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--senders", o.senders, "Threads that send; gRPC adds its own")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--duration", o.duration_seconds, "Measured time")
      ->check(SecondsBetween(0.1, 30 * 86400))
      ->capture_default_str();
  app.add_option("--warmup", o.warmup_seconds, "Load before it that is not measured")
      ->check(SecondsBetween(0, 86400))
      ->capture_default_str();
  app.add_option("--deadline", o.deadline_seconds, "Of each operation")
      ->check(SecondsBetween(0.001, 3600))
      ->capture_default_str();
  app.add_option(
      "--tolerate", flags.tolerate,
      "gRPC codes that do not make the exit status 1, as UNAVAILABLE,RESOURCE_EXHAUSTED");
}

void DeclareWork(CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  app.add_option("--mix", flags.mix, "Weights of put:get:match")->capture_default_str();
  app.add_option("--population", o.population, "Sequences that are asked for")
      ->check(CLI::Range(1u, 1u << 23))
      ->capture_default_str();
  app.add_option("--value-tokens", o.value_tokens, "Tokens of a sequence")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 22))
      ->capture_default_str();
  app.add_option("--zipf", o.zipf, "Skew of popularity; 0: all sequences alike")
      ->check(Between(0, 10))
      ->capture_default_str();
  app.add_option("--prefix-share", o.prefix_share,
                 "Share of a sequence's segments that others begin with, too")
      ->check(Between(0, 1))
      ->capture_default_str();
  app.add_option("--prefix-groups", o.prefix_groups, "Different such beginnings")
      ->check(CLI::Range(1u, 1u << 23))
      ->capture_default_str();
  app.add_option(
         "--new-puts", o.new_puts,
         "Share of puts with a sequence that was never put; it takes the place of an old one")
      ->check(Between(0, 1))
      ->capture_default_str();
  app.add_option("--match-by", flags.match_by,
                 "What matches send: tokens, or keys of full segments once they are known")
      ->check(CLI::IsMember({"tokens", "keys"}))
      ->capture_default_str();
  app.add_flag("--fill,!--no-fill", o.fill,
               "Put the whole population before (default if there are gets or matches)");
  app.add_flag("--verify", o.verify,
               "Check every fetched value against what was put; takes the generator time");
  app.add_option("--seed", o.seed, "Of tokens, values, arrivals and choices")
      ->capture_default_str();
}

void DeclareValues(CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  app.add_option("--profile", flags.profile,
                 "Codec profile: a file, 'default', or 'none' to keep everything exact")
      ->capture_default_str();
  app.add_option("--layers", o.geometry.layers, "Of the model; unless --profile is a file")
      ->capture_default_str();
  app.add_option("--kv-heads", o.geometry.kv_heads, "Of the model")->capture_default_str();
  app.add_option("--head-dim", o.geometry.head_dim, "Of the model")->capture_default_str();
  app.add_option("--payload", flags.payload, "What puts send: exact, lossless or compact")
      ->check(CLI::IsMember({"exact", "lossless", "compact"}))
      ->capture_default_str();
  app.add_option("--fetch", flags.fetch,
                 "What gets ask for: exact, lossless, compact or dense; segment 0 and tails are "
                 "exact in any case. Without it compact if there is a profile, else exact")
      ->check(CLI::IsMember({"exact", "lossless", "compact", "dense"}));
}

absl::StatusOr<SegmentForm> FormOf(const std::string& name) {
  for (int form = 1; form <= kLastForm; ++form) {
    if (name == FormName(static_cast<SegmentForm>(form))) return static_cast<SegmentForm>(form);
  }
  return absl::InvalidArgumentError(absl::StrCat(name, " is no form"));
}

bool Given(const CLI::App& app, const char* flag) { return app.get_option(flag)->count() > 0; }

absl::Status ReadProfile(const CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  if (flags.profile == "default" || flags.profile == "none") {
    if (absl::Status s = o.geometry.Validate(); !s.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--layers, --kv-heads and --head-dim: ", s.message()));
    }
    if (flags.profile == "default") o.profile = DefaultProfile(o.geometry);
  } else {
    for (const char* flag : {"--layers", "--kv-heads", "--head-dim"}) {
      if (Given(app, flag)) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, " is what the --profile file says already; leave it out"));
      }
    }
    absl::StatusOr<CodecProfile> profile = CodecProfile::FromFile(flags.profile);
    if (!profile.ok()) {
      return {profile.status().code(), absl::StrCat("--profile: ", profile.status().message())};
    }
    o.geometry = profile->geometry;
    o.profile = *std::move(profile);
  }
  if (o.profile.has_value()) o.segment_tokens = o.profile->segment_tokens;
  return absl::OkStatus();
}

// Flags that would be ignored.
absl::Status RefuseIdle(const CLI::App& app, const LoadOptions& o) {
  const auto idle = [&](const char* flag, bool used, const char* why) {
    return !used && Given(app, flag) ? absl::InvalidArgumentError(absl::StrCat(flag, " ", why))
                                     : absl::OkStatus();
  };
  const char* const closed = "is for an open loop, and --closed-loop was given";
  for (const absl::Status& s :
       {idle("--rate", !o.closed_loop, closed), idle("--arrival", !o.closed_loop, closed),
        idle("--prefix-groups", o.prefix_share > 0, "needs a --prefix-share above 0"),
        idle("--new-puts", o.mix.put > 0, "is about puts, and --mix has none"),
        idle("--match-by", o.mix.match > 0, "is about matches, and --mix has none"),
        idle("--fetch", o.mix.get > 0, "is about gets, and --mix has none"),
        idle("--payload", o.mix.put > 0 || o.fill, "is about puts; there are none")}) {
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

void DeclareLoadFlags(CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  app.set_version_flag("--version", std::string("fourierkv-loadtest ") + FOURIERKV_VERSION);
  app.set_config("--config", "", "Read flags from a TOML or INI file; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.add_option("--server", o.server, "fourierkv-server, as HOST:PORT or unix:PATH")->required();
  app.add_option("--connect-timeout", o.connect_seconds, "How long to wait for the server")
      ->check(SecondsBetween(0.01, 3600))
      ->capture_default_str();
  DeclareChannelFlags(app, o.channel);
  DeclareLoad(app, flags);
  DeclareWork(app, flags);
  DeclareValues(app, flags);
  app.add_option("--output", flags.output, "table or json")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  app.add_flag("--quiet", flags.quiet, "No progress on stderr");
}

absl::Status FinishLoadFlags(const CLI::App& app, LoadFlags& flags) {
  LoadOptions& o = flags.options;
  const absl::StatusOr<Mix> mix = ParseMix(flags.mix);
  if (!mix.ok()) return mix.status();
  o.mix = *mix;
  o.arrival = flags.arrival == "poisson" ? ArrivalProcess::kPoisson : ArrivalProcess::kConstant;
  o.match_by_keys = flags.match_by == "keys";
  if (!Given(app, "--fill")) o.fill = o.mix.get + o.mix.match > 0;
  if (!flags.tolerate.empty()) {
    for (const absl::string_view name : absl::StrSplit(flags.tolerate, ',')) {
      const absl::StatusOr<absl::StatusCode> code = ParseStatusCode(name);
      if (!code.ok()) return code.status();
      o.tolerated.insert(*code);
    }
  }
  if (absl::Status s = ReadProfile(app, flags); !s.ok()) return s;
  const absl::StatusOr<SegmentForm> payload = FormOf(flags.payload);
  if (!payload.ok()) return payload.status();
  o.payload = *payload;
  if (flags.fetch.empty()) {
    o.fetch = o.profile.has_value() ? SegmentForm::kCompact : SegmentForm::kExact;
  } else {
    const absl::StatusOr<SegmentForm> fetch = FormOf(flags.fetch);
    if (!fetch.ok()) return fetch.status();
    o.fetch = *fetch;
  }
  if (absl::Status s = RefuseIdle(app, o); !s.ok()) return s;
  return CheckLoadOptions(o);
}

}  // namespace fourierkv::loadtest
