// SPDX-License-Identifier: Apache-2.0
#include "observe/nats_sink.h"

#include "observe/nats_publisher.h"

namespace sockalarm::observe {

std::string nats_subject(const Host& host, Cause cause) {
  return "sockalarm.v1." + nats_token(host.region) + "." + nats_token(host.name) + "." +
         std::string(text(cause));
}

NatsSink::NatsSink(Host host, std::unique_ptr<Spool> spool)
    : host_(std::move(host)), spool_(std::move(spool)) {}

NatsSink::~NatsSink() = default;

Result<std::unique_ptr<NatsSink>> NatsSink::open(Host host, NatsOptions options, Spool::Options spool_options,
                                                 Losses& losses, ErrorHook on_error) {
  if (options.window == 0 || options.max_wait.count() <= 0 || options.least_backoff.count() <= 0 ||
      options.most_backoff < options.least_backoff)
    return fail(Error(Errc::invalid_options,
                      "NATS: a window, a longest wait and a back-off of more than 0, and no most "
                      "back-off below the least"));
  const auto replay = spool_options.max_age;
  if (!spool_options.on_damage) spool_options.on_damage = on_error;
  auto spool = Spool::open(std::move(spool_options), losses);
  if (!spool) return fail(spool.error());
  std::unique_ptr<NatsSink> sink(new NatsSink(std::move(host), std::move(*spool)));
  sink->publisher_ =
      std::make_unique<NatsPublisher>(std::move(options), *sink->spool_, replay, std::move(on_error));
  return sink;
}

Result<void> NatsSink::start() { return publisher_->start(); }

Result<void> NatsSink::write(const Record& record) {
  const auto number =
      spool_->append(NatsMessage{nats_subject(host_, record.cause), record.id, record.json}.encoded());
  if (!number) return fail(number.error());
  publisher_->news();
  return {};
}

Result<void> NatsSink::flush() { return spool_->sync(); }

const NatsFigures& NatsSink::figures() const noexcept { return publisher_->figures(); }

Spool::State NatsSink::spool() const { return spool_->state(); }

}  // namespace sockalarm::observe
