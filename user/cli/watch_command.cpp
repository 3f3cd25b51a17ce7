// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/sockalarm.h>
#include <sys/resource.h>

#include <atomic>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/mutex.h"
#include "base/signal_text.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/process_sockets.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kExitLeftOut = 1;  // some of the connections

struct WatchOptions {
  std::string pid;
  std::optional<std::string> local, remote;
  std::string on = "shut", source = "auto", socket = Options{}.daemon_socket;
  std::vector<std::string> actions;
  bool json = false;
};

// What is meant by it.
struct WatchPlan {
  pid_t pid = 0;
  std::optional<AddressPattern> local, remote;
  Events on;
  SourceKind source = SourceKind::automatic;
  std::vector<Action> actions;
};

Result<std::optional<AddressPattern>> read_pattern(const char* option,
                                                   const std::optional<std::string>& text) {
  if (!text) return std::optional<AddressPattern>();
  auto pattern = AddressPattern::parse(*text);
  if (!pattern) return fail(pattern.error().with_context(option));
  return std::optional(*pattern);
}

// What can be known of a socket whose descriptor is another process's.
Result<Events> read_events(const std::string& text) {
  const auto on = parse_events(text);
  if (!on) return fail(on.error().with_context("--on"));
  if (on->empty() || *on - (events::shut | events::closed))
    return fail(usage("--on " + sockalarm::quoted(text) +
                      " cannot be told of another process's socket; expected some of fin, reset, timeout, "
                      "error, shut and closed"));
  return *on;
}

// "sig:" means the process that is watched; what names descriptors or sockets would mean our own.
Result<std::vector<Action>> read_actions(const std::vector<std::string>& texts, pid_t pid) {
  std::vector<Action> actions;
  for (const std::string& text : texts) {
    const auto chain = ActionChain::parse(text);
    if (!chain) return fail(chain.error());
    for (std::size_t i = 0; i < chain->size(); ++i) {
      const std::string one = to_string((*chain)[i]);
      const std::string kind = one.substr(0, one.find(':'));
      if (kind == "run" || kind == "sleep" || kind == "kill") {
        actions.push_back((*chain)[i]);
      } else if (kind == "sig") {
        const std::string name = one.substr(4, one.find(':', 4) - 4);
        const auto signal = detail::parse_signal(name);
        if (!signal) return fail(usage(sockalarm::quoted(name) + " is not a signal"));
        actions.push_back(kill_process(*signal, pid));
      } else {
        return fail(usage(sockalarm::quoted(one) +
                          " would act on sockalarm itself; expected run:PROGRAM, sleep:TIME, "
                          "kill:SIGNAL:PID, or sig:SIGNAL for the process that is watched"));
      }
    }
  }
  return actions;
}

Result<WatchPlan> make_plan(const WatchOptions& options) {
  WatchPlan plan;
  plan.pid = parse_number<pid_t>(options.pid).value_or(0);
  if (plan.pid <= 0)
    return fail(usage("--pid " + sockalarm::quoted(options.pid) +
                      " is not a process id; expected a number above 0, such as pidof(1) prints"));
  auto local = read_pattern("--local", options.local), remote = read_pattern("--remote", options.remote);
  if (!local) return fail(local.error());
  if (!remote) return fail(remote.error());
  plan.local = *local;
  plan.remote = *remote;
  const auto on = read_events(options.on);
  if (!on) return fail(on.error());
  plan.on = *on;
  const auto source = parse_source(options.source);
  if (!source) return fail(source.error().with_context("--source"));
  plan.source = *source;
  auto actions = read_actions(options.actions, plan.pid);
  if (!actions) return fail(actions.error());
  plan.actions = std::move(*actions);
  return plan;
}

// A descriptor that we kept would keep its connection open, so only those sources will do that know a socket
// without one.
Result<Watcher> make_watcher(const WatchPlan& plan, const WatchOptions& options, std::size_t sockets) {
  Options wanted;
  wanted.source = plan.source;
  wanted.daemon_socket = options.socket;
  wanted.max_watches = sockets;
  // It compares descriptor and socket, and of these sockets we have no descriptor.
  wanted.closed_check = std::chrono::hours(24 * 365);
  auto watcher = Watcher::create(std::move(wanted));
  if (!watcher) return watcher;
  const Description described = watcher->describe();
  if (described.source == SourceKind::daemon || described.source == SourceKind::kernel) return watcher;
  std::string why;
  for (const std::string& line : described.why_not) why += "\n  " + line;
  return fail(usage("neither sockalarmd nor the BPF programs are to be had here, and with " +
                    std::string(to_string(described.source)) +
                    " the connections of another process would be kept open; start sockalarmd, or run "
                    "sockalarm as root" +
                    why));
}

// One for each connection of the process, which may have more than we may by default.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

class Watching {
 public:
  Watching(const WatchOptions& options, WatchPlan plan) : options_(options), plan_(std::move(plan)) {}

  int run() {
    raise_descriptor_limit();
    auto sockets = take_sockets(plan_.pid, plan_.local, plan_.remote);
    if (!sockets) return complain(sockets.error());
    auto watcher = make_watcher(plan_, options_, sockets->size());
    if (!watcher) return complain(watcher.error());
    {
      const MutexLock lock(mutex_);
      missing_ = sockets->size();
    }
    const std::size_t all = sockets->size();
    std::size_t left_out = 0;
    for (TakenSocket& socket : *sockets) {
      const auto watched = begin(*watcher, std::move(socket));
      if (!watched) return complain(watched.error());
      left_out += *watched ? 0 : 1;
    }
    if (left_out == all) return complain(usage("none of the connections can be watched"));
    const MutexLock lock(mutex_);
    while (missing_ != 0 && write_failed_ == 0) changed_.wait(mutex_);
    if (write_failed_ != 0) return complain(Error::from_errno(write_failed_, "writing to stdout"));
    return left_out == 0 ? 0 : kExitLeftOut;
  }

 private:
  struct Item {
    DescriptorInfo info;
    Watch watch;
    Clock::time_point since = Clock::now();
    std::atomic<bool> told{false};
    std::optional<Alarm> left, closed;
  };

  int complain(const Error& error) const {
    say("sockalarm watch: " + error.message());
    return kExitFailed;
  }

  // False: it is left out, which has been told. The others are watched all the same.
  Result<bool> begin(Watcher& watcher, TakenSocket socket) {
    auto watch = watcher.watch(socket.copy.get());
    if (!watch && watch.error().code() == Errc::not_connected)  // meanwhile
      return leave_out(socket.info, watch.error().message());
    if (!watch) return fail(watch.error());
    if (watch->source() != watcher.describe().source)
      return leave_out(socket.info,
                       "cannot be registered: the table or the quota is full, or another client of "
                       "sockalarmd watches it, maybe the process itself (as root: --source kernel)");
    items_.push_back(std::make_unique<Item>(std::move(socket.info), std::move(*watch)));
    Item& item = *items_.back();
    tell(item, "watching", {{"source", to_string(item.watch.source())}},
         "watched by " + std::string(to_string(item.watch.source())));
    auto left = item.watch.arm(chain_of(item), {.on = plan_.on});
    if (!left) return fail(left.error());
    item.left.emplace(std::move(*left));
    if (plan_.on.contains(events::closed)) return true;
    // Then nothing is left to wait for.
    auto closed = item.watch.arm(call([this, &item] {
                                   if (item.told.exchange(true)) return;
                                   tell(item, "closed", {}, "closed by the process itself");
                                   finish();
                                 }),
                                 {.on = events::closed});
    if (!closed) return fail(closed.error());
    item.closed.emplace(std::move(*closed));
    return true;
  }

  bool leave_out(const DescriptorInfo& info, const std::string& why) {
    if (options_.json)
      write(json_of(info, "left_out", {{"why", why}}).dump());
    else
      say("sockalarm watch: " + text_of(info) + " is left out: " + why);
    finish();
    return false;
  }

  ActionChain chain_of(Item& item) {
    std::vector<Action> actions{call([this, &item](const Event& event) {
      if (item.told.exchange(true)) return Verdict::stop;
      tell(item, event.what.contains(events::closed) ? "closed" : "left", {{"events", to_string(event.what)}},
           to_string(event.what));
      return Verdict::proceed;
    })};
    actions.insert(actions.end(), plan_.actions.begin(), plan_.actions.end());
    actions.push_back(call([this] { finish(); }));
    return ActionChain(std::move(actions));
  }

  void finish() {
    const MutexLock lock(mutex_);
    --missing_;
    changed_.notify_all();
  }

  // On the dispatcher, and at the beginning on the main thread.
  void tell(const Item& item, const char* event, nlohmann::json fields, const std::string& words) {
    std::ostringstream line;
    const double seconds = std::chrono::duration<double>(Clock::now() - item.since).count();
    if (options_.json) {
      fields["seconds"] = seconds;
      line << json_of(item.info, event, std::move(fields)).dump();
    } else {
      line << text_of(item.info) << " " << words << std::fixed << std::setprecision(3);
      if (item.told) line << " after " << seconds << " s";
    }
    write(line.str());
  }

  static std::string text_of(const DescriptorInfo& info) {
    return std::to_string(info.fd) + ": " + to_string(*info.local) + " <-> " + to_string(*info.peer);
  }

  nlohmann::json json_of(const DescriptorInfo& info, const char* event, nlohmann::json fields) const {
    fields.update({{"event", event},
                   {"pid", plan_.pid},
                   {"fd", info.fd},
                   {"local", to_string(*info.local)},
                   {"remote", to_string(*info.peer)},
                   {"cookie", info.cookie}});
    return fields;
  }

  void write(const std::string& line) {
    const MutexLock lock(mutex_);
    try {
      std::cout << line << '\n' << std::flush;
    } catch (const std::ios_base::failure&) {
      write_failed_ = errno != 0 ? errno : EIO;
      changed_.notify_all();
    }
  }

  const WatchOptions& options_;
  const WatchPlan plan_;
  Mutex mutex_;  // stdout, too
  ConditionVariable changed_;
  std::size_t missing_ GUARDED_BY(mutex_) = 0;  // sockets that are not over
  int write_failed_ GUARDED_BY(mutex_) = 0;
  std::vector<std::unique_ptr<Item>> items_;  // the last member: its alarms use the others
};

constexpr const char* kWatchFooter =
    "Copies of the process's descriptors are taken (pidfd_getfd, so as its user or as root), registered with "
    "sockalarmd or with BPF programs of our own, and closed again: the process and its peers notice nothing. "
    "Connections that it makes later are not watched. ACTION, once for each connection: run:PROGRAM, "
    "sleep:TIME, kill:SIGNAL:PID, and sig:SIGNAL for the process. Ends when all connections are over: left, "
    "or closed by the process.\n\n"
    "Exit status: 0; 1 if some connections were left out, because somebody watches them already; 125 if none "
    "could be watched, or sockalarm failed.\n\n"
    "Examples:\n"
    "  sockalarm watch --pid $(pidof -s postgres)\n"
    "  sockalarm watch --pid 1234 --remote 10.0.0.7 --on reset,timeout sig:USR1\n"
    "  sockalarm watch --pid 1234 --local :443 --json \"run:logger 'a client left'\"";

}  // namespace

void add_watch(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("watch", "Tell when the peers of a running process leave");
  auto options = std::make_shared<WatchOptions>();
  sub->add_option("--pid", options->pid, "the process")->required()->type_name("PID");
  sub->add_option("--local", options->local, "only connections with this address here: 10.0.0.1:80, :80, ::1")
      ->type_name("ADDR");
  sub->add_option("--remote", options->remote, "only those with this peer")->type_name("ADDR");
  sub->add_option("--on", options->on, "events that count as leaving, separated by commas (default: shut)")
      ->type_name("fin|reset|timeout|error|shut|closed");
  sub->add_option("--source", options->source, "where the news comes from (default: auto)")
      ->type_name("auto|daemon|kernel");
  sub->add_option("--socket", options->socket, "where sockalarmd listens")->type_name("PATH");
  sub->add_flag("--json", options->json, "print one JSON object per line");
  sub->add_option("ACTION", options->actions, "what to do then, one after the other");
  sub->footer(kWatchFooter);
  sub->callback([&chosen, options] {
    chosen = [options] {
      auto plan = make_plan(*options);
      if (plan) return Watching(*options, std::move(*plan)).run();
      say("sockalarm watch: " + plan.error().message());
      return kExitFailed;
    };
  });
}

}  // namespace sockalarm::cli
