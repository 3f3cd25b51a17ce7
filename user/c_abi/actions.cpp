// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/address.h>
#include <sys/socket.h>

#include <stdexcept>
#include <vector>

#include "c_abi/entry.h"
#include "c_abi/handles.h"

namespace sockalarm::c_abi {
namespace {

std::vector<Action> list_of(const ActionChain& chain) {
  std::vector<Action> list;
  list.reserve(chain.size());
  for (std::size_t i = 0; i < chain.size(); ++i) list.push_back(chain[i]);
  return list;
}

int add(sockalarm_actions& actions, const ActionChain& more) {
  if (const Error* const error = more.error()) return fail_with(*error);
  std::vector<Action> list = list_of(actions.chain);
  list.reserve(list.size() + more.size());
  for (std::size_t i = 0; i < more.size(); ++i) list.push_back(more[i]);
  actions.chain = ActionChain(std::move(list));
  return 0;
}

// Of a descriptor or of an address.
template <class Target>
Result<Action> shut(const Target& target, int how) {
  if (how == SHUT_RD) return shutdown_read(target);
  if (how == SHUT_WR) return shutdown_write(target);
  if (how == SHUT_RDWR) return shutdown_both(target);
  return fail(
      Error(Errc::invalid_action, "`how` is " + std::to_string(how) + "; use SHUT_RD, SHUT_WR or SHUT_RDWR"));
}

std::vector<std::string> words(const char* const argv[]) {
  std::vector<std::string> list;
  for (; *argv != nullptr; ++argv) list.emplace_back(*argv);
  return list;
}

// `data` and who is told when nobody needs it any more. Told nothing until all that may fail has been done.
class Called {
 public:
  Called(sockalarm_call_fn* function, void* data) noexcept : function_(function), data_(data) {}
  ~Called() {
    if (release_ != nullptr) release_(data_);
  }
  Called(const Called&) = delete;
  Called& operator=(const Called&) = delete;

  void release_by(sockalarm_release_fn* release) noexcept { release_ = release; }
  Verdict operator()(const Event& event) const {
    const sockalarm_event told = to_c(event);
    return function_(data_, &told) == SOCKALARM_STOP ? Verdict::stop : Verdict::proceed;
  }

 private:
  sockalarm_call_fn* const function_;
  void* const data_;
  sockalarm_release_fn* release_ = nullptr;
};

int add_call(sockalarm_actions& actions, sockalarm_call_fn* function, void* data,
             sockalarm_release_fn* release, Action (*make)(std::function<Verdict(const Event&)>)) {
  const auto called = std::make_shared<Called>(function, data);
  const int added = add(actions, make([called](const Event& event) { return (*called)(event); }));
  if (added == 0) called->release_by(release);
  return added;
}

}  // namespace
}  // namespace sockalarm::c_abi

using namespace sockalarm::c_abi;

int sockalarm_actions_new(sockalarm_actions** out) {
  return make_handle(__func__, out, []() -> sockalarm::Result<sockalarm::ActionChain> { return {}; });
}

int sockalarm_actions_parse(const char* text, sockalarm_actions** out) {
  if (out != nullptr) *out = nullptr;
  SOCKALARM_C_NEEDS(text);
  return make_handle(__func__, out, [&]() -> sockalarm::Result<sockalarm::ActionChain> {
    auto chain = sockalarm::ActionChain::parse(text);
    if (chain && chain->error() != nullptr) return sockalarm::fail(*chain->error());
    return chain;
  });
}

void sockalarm_actions_free(sockalarm_actions* actions) { delete actions; }

int sockalarm_actions_count(const sockalarm_actions* actions) {
  SOCKALARM_C_NEEDS(actions);
  return static_cast<int>(actions->chain.size());
}

int sockalarm_actions_text(const sockalarm_actions* actions, char* buffer, size_t size) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] { return copy_text(to_string(actions->chain), buffer, size); });
}

int sockalarm_actions_add(sockalarm_actions* actions, const char* text) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(text);
  return guarded(__func__, [&] {
    const auto chain = sockalarm::ActionChain::parse(text);
    return chain ? add(*actions, *chain) : fail_with(chain.error());
  });
}

int sockalarm_actions_add_signal(sockalarm_actions* actions, int signal) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] { return add(*actions, sockalarm::send_signal(signal)); });
}

int sockalarm_actions_add_process_signal(sockalarm_actions* actions, int signal) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] {
    return add(*actions, sockalarm::send_signal(signal, sockalarm::SignalTarget::process));
  });
}

int sockalarm_actions_add_kill(sockalarm_actions* actions, int signal, pid_t pid) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] { return add(*actions, sockalarm::kill_process(signal, pid)); });
}

int sockalarm_actions_add_close(sockalarm_actions* actions, int fd) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] { return add(*actions, sockalarm::close_fd(fd)); });
}

int sockalarm_actions_add_shutdown(sockalarm_actions* actions, int fd, int how) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] {
    const auto action = shut(fd, how);
    return action ? add(*actions, *action) : fail_with(action.error());
  });
}

int sockalarm_actions_add_close_peer(sockalarm_actions* actions, const struct sockaddr* peer,
                                     socklen_t length) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(peer);
  return guarded(
      __func__, [&] { return add(*actions, sockalarm::close_peer(sockalarm::SocketAddress(peer, length))); });
}

int sockalarm_actions_add_shutdown_peer(sockalarm_actions* actions, const struct sockaddr* peer,
                                        socklen_t length, int how) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(peer);
  return guarded(__func__, [&] {
    const auto action = shut(sockalarm::SocketAddress(peer, length), how);
    return action ? add(*actions, *action) : fail_with(action.error());
  });
}

int sockalarm_actions_add_run(sockalarm_actions* actions, const char* const argv[]) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(argv);
  return guarded(__func__, [&] { return add(*actions, sockalarm::run(words(argv))); });
}

int sockalarm_actions_add_exec(sockalarm_actions* actions, const char* const argv[]) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(argv);
  return guarded(__func__, [&] { return add(*actions, sockalarm::exec(words(argv))); });
}

int sockalarm_actions_add_sleep(sockalarm_actions* actions, int64_t duration) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__,
                 [&] { return add(*actions, sockalarm::sleep_for(std::chrono::nanoseconds(duration))); });
}

int sockalarm_actions_add_notify(sockalarm_actions* actions, int eventfd) {
  SOCKALARM_C_NEEDS(actions);
  return guarded(__func__, [&] { return add(*actions, sockalarm::notify(eventfd)); });
}

int sockalarm_actions_add_post(sockalarm_actions* actions, sockalarm_context* context, void* tag) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(context);
  return guarded(__func__, [&] {
    return add(*actions, sockalarm::call([news = context->news, tag](const sockalarm::Event& event) {
      if (!news->put({tag, to_c(event)}))
        throw std::runtime_error(
            "the context was inherited by fork(); call sockalarm_context_after_fork() first");
      return sockalarm::Verdict::proceed;
    }));
  });
}

int sockalarm_actions_add_call(sockalarm_actions* actions, sockalarm_call_fn* function, void* data,
                               sockalarm_release_fn* release) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(function);
  return guarded(__func__, [&] { return add_call(*actions, function, data, release, sockalarm::call); });
}

int sockalarm_actions_add_call_blocking(sockalarm_actions* actions, sockalarm_call_fn* function, void* data,
                                        sockalarm_release_fn* release) {
  SOCKALARM_C_NEEDS(actions);
  SOCKALARM_C_NEEDS(function);
  return guarded(__func__,
                 [&] { return add_call(*actions, function, data, release, sockalarm::call_blocking); });
}
