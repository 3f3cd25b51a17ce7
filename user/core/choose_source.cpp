// SPDX-License-Identifier: Apache-2.0
#include "core/sources.h"

namespace sockalarm::detail {
namespace {

Result<std::unique_ptr<Source>> make_source(SourceKind kind, [[maybe_unused]] const Options& options) {
  switch (kind) {
    case SourceKind::kernel:
#if SOCKALARM_BPF
      return make_kernel_source(options);
#else
      return fail(Error(Errc::unsupported, "this build has no BPF; configure with -DSOCKALARM_BPF=ON"));
#endif
    case SourceKind::daemon:
#if SOCKALARM_LINUX
      return make_daemon_source(options);
#else
      return fail(Error(Errc::unsupported, "the daemon is only on Linux"));
#endif
    case SourceKind::epoll:
#if SOCKALARM_LINUX
      return make_epoll_source();
#else
      return fail(Error(Errc::unsupported, "epoll is only on Linux"));
#endif
    default:
      break;
  }
  return make_poll_source(PollStyle::rdhup);
}

}  // namespace

Result<ChosenSource> choose_source(const Options& options) {
  ChosenSource chosen;
  for (const SourceKind kind :
       {SourceKind::daemon, SourceKind::kernel, SourceKind::epoll, SourceKind::poll}) {
    if (options.source != SourceKind::automatic && options.source != kind) continue;
    auto source = make_source(kind, options);
    if (source) {
      chosen.source = std::move(*source);
      return chosen;
    }
    Error why = source.error().with_context("no " + std::string(to_string(kind)) + " source");
    if (options.source == kind || kind == SourceKind::poll) return fail(std::move(why));
    chosen.why_not.push_back(why.message());
  }
  return fail(Error(Errc::unsupported, "unknown source; use automatic, daemon, kernel, epoll or poll"));
}

}  // namespace sockalarm::detail
