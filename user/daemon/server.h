// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "daemon/client.h"
#include "daemon/config.h"
#include "daemon/lane.h"
#include "daemon/prompt_close.h"
#include "daemon/service.h"

namespace sockalarm::daemon {

// Accepts connections, and gives each to the lane of its user. One thread, which waits for nobody.
class Server {
 public:
  // listener: a listening socket of type SOCK_SEQPACKET. Takes over the clients that are in the kernel.
  static Result<std::unique_ptr<Server>> create(const Config& config, KernelSide& kernel,
                                                service::Listener listener);
  ~Server();  // also after an error: clients stay in the kernel

  // Until SIGTERM or SIGINT, which must be blocked; SIGHUP reads the configuration again.
  Result<void> run(const std::function<Result<Config>()>& read_again);

 private:
  Server(const Config& config, KernelSide& kernel, service::Listener listener);
  Result<void> adopt();
  void accept_all();
  void accept_one(UniqueFd socket);
  Result<Lane*> lane_of(uid_t uid);
  void reload(const std::function<Result<Config>()>& read_again);
  void leave();

  Config config_;
  Roll roll_;
  Shared shared_;
  service::Listener listener_;
  const PromptClose close_promptly_;
  std::map<uid_t, std::unique_ptr<Lane>> lanes_;
};

}  // namespace sockalarm::daemon
