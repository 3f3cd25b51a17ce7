// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <nats/nats.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "harness/alarms.h"
#include "harness/servers.h"
#include "observe/nats_publisher.h"

namespace sockalarm::observe::test {

using sockalarm::test::eventually;
using sockalarm::test::ServerFolder;
using sockalarm::test::ServerProcess;

// One nats-server with JetStream, in a folder and on ports of its own, that can be killed and started again.
// It dies with the thread that starts it.
class NatsServer {
 public:
  NatsServer(const ServerFolder& folder, std::string name, std::string port,
             std::vector<std::string> more = {})
      : folder_(folder), name_(std::move(name)), port_(std::move(port)), more_(std::move(more)) {}

  void start() {
    std::vector<std::string> words{"nats-server", "-a", "127.0.0.1", "-p",  port_,
                                   "-js",         "-n", name_,       "-sd", folder_ / name_};
    words.insert(words.end(), more_.begin(), more_.end());
    process_.emplace(folder_, name_, std::move(words));
  }
  void kill() {
    if (process_) process_->send(SIGKILL), process_->wait();
    process_.reset();
  }
  void stop_and_continue(bool stop) const { process_->send(stop ? SIGSTOP : SIGCONT); }
  // `user`: NAME:PASSWORD@
  pid_t pid() const { return process_->pid(); }
  std::string url(const std::string& user = "") const { return "nats://" + user + "127.0.0.1:" + port_; }

 private:
  const ServerFolder& folder_;
  std::string name_, port_;
  std::vector<std::string> more_;
  std::optional<ServerProcess> process_;
};

// A client of the stream for the test itself.
class Consumer {
 public:
  // Waits for the server.
  explicit Consumer(const std::string& servers) {
    natsOptions* options = nullptr;
    EXPECT_EQ(natsOptions_Create(&options), NATS_OK);
    const NatsOwned<natsOptions> owned(options);
    std::vector<std::string> each;
    for (std::size_t at = 0; at < servers.size(); at = servers.find(',', at) + 1) {
      each.push_back(servers.substr(at, servers.find(',', at) - at));
      if (servers.find(',', at) == std::string::npos) break;
    }
    std::vector<const char*> urls;
    for (const auto& url : each) urls.push_back(url.c_str());
    natsOptions_SetServers(options, urls.data(), static_cast<int>(urls.size()));
    natsOptions_SetMaxReconnect(options, -1);
    natsOptions_SetReconnectWait(options, 100);
    natsConnection* connection = nullptr;
    EXPECT_TRUE(eventually([&] { return natsConnection_Connect(&connection, options) == NATS_OK; },
                           std::chrono::seconds(60)));
    connection_.reset(connection);
    jsCtx* context = nullptr;
    EXPECT_EQ(natsConnection_JetStream(&context, connection, nullptr), NATS_OK);
    context_.reset(context);
  }

  void make_stream(int replicas, std::chrono::seconds duplicates) {
    jsStreamConfig config;
    jsStreamConfig_Init(&config);
    const char* subjects[] = {"sockalarm.v1.>"};
    config.Name = "SOCKALARM";
    config.Subjects = subjects;
    config.SubjectsLen = 1;
    config.Replicas = replicas;
    config.Duplicates = std::chrono::nanoseconds(duplicates).count();
    jsErrCode code{};
    natsStatus status = NATS_OK;
    EXPECT_TRUE(eventually(
        [&] {
          status = js_AddStream(nullptr, context_.get(), &config, nullptr, &code);
          return status == NATS_OK;
        },
        std::chrono::seconds(120)))
        << natsStatus_GetText(status) << " " << code;
  }

  void publish(const std::string& subject, const std::string& json) const {
    jsErrCode code{};
    EXPECT_EQ(js_Publish(nullptr, context_.get(), subject.c_str(), json.data(), static_cast<int>(json.size()),
                         nullptr, &code),
              NATS_OK);
  }
  bool has_durable(const std::string& name) const {
    jsConsumerInfo* info = nullptr;
    const natsStatus status =
        js_GetConsumerInfo(&info, context_.get(), "SOCKALARM", name.c_str(), nullptr, nullptr);
    jsConsumerInfo_Destroy(info);
    return status == NATS_OK;
  }
  std::size_t durables() const {
    jsStreamInfo* info = nullptr;
    EXPECT_EQ(js_GetStreamInfo(&info, context_.get(), "SOCKALARM", nullptr, nullptr), NATS_OK);
    const std::int64_t count = info == nullptr ? -1 : info->State.Consumers;
    jsStreamInfo_Destroy(info);
    return static_cast<std::size_t>(count);
  }

  // Of all messages of the stream the ids, and how often each came; until `wanted` different ones are there.
  // A consumer that a broker forgot while it came back says nothing more: then anew, from the beginning.
  std::multiset<std::string> ids(std::size_t wanted, std::chrono::seconds limit) {
    std::multiset<std::string> all;
    const auto until = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < until) {
      all = read_all();
      if (std::set<std::string>(all.begin(), all.end()).size() >= wanted) break;
    }
    return all;
  }

  std::string last_subject, last_json;

 private:
  // From the beginning, until nothing comes for three seconds.
  std::multiset<std::string> read_all() {
    std::multiset<std::string> all;
    natsSubscription* subscription = nullptr;
    jsSubOptions options;
    jsSubOptions_Init(&options);
    options.Ordered = true;
    if (js_SubscribeSync(&subscription, context_.get(), "sockalarm.v1.>", nullptr, &options, nullptr) !=
        NATS_OK)
      return all;
    const std::unique_ptr<natsSubscription, decltype(&natsSubscription_Destroy)> ended(
        subscription, &natsSubscription_Destroy);
    natsMsg* message = nullptr;
    while (natsSubscription_NextMsg(&message, subscription, 3000) == NATS_OK) {
      const NatsOwned<natsMsg> owned(message);
      const char* id = nullptr;
      if (natsMsgHeader_Get(message, "Nats-Msg-Id", &id) != NATS_OK) continue;
      all.insert(id);
      last_subject = natsMsg_GetSubject(message);
      last_json.assign(natsMsg_GetData(message), static_cast<std::size_t>(natsMsg_GetDataLength(message)));
    }
    return all;
  }

  NatsOwned<natsConnection> connection_;
  NatsOwned<jsCtx> context_;
};

}  // namespace sockalarm::observe::test
