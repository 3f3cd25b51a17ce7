// SPDX-License-Identifier: Apache-2.0
#include <libpq-fe.h>
#include <sockalarm/postgres.h>

#include <string>
#include <string_view>
#include <system_error>

#include "base/text.h"
#include "core/action_impl.h"

namespace sockalarm::postgres {
namespace {

using detail::ActionContext;
using detail::Outcome;

std::string text_of(const PGconn* connection) {
  std::string text = "pg_cancel:" + std::to_string(PQbackendPID(connection));
  const char* const host = PQhost(connection);
  const char* const port = PQport(connection);
  if (host != nullptr && *host != '\0') text.append("@").append(host);
  if (port != nullptr && *port != '\0') text.append(":").append(port);
  return text;
}

class CancelQuery final : public detail::ActionImpl {
 public:
  explicit CancelQuery(PGconn* connection)
      : text_(connection != nullptr ? text_of(connection) : "pg_cancel:"), cancel_(PQgetCancel(connection)) {
    if (cancel_ == nullptr)
      error_ = Error(Errc::invalid_action,
                     text_ +
                         ": there is nothing to cancel on; expected a connection that is open (PQstatus() "
                         "CONNECTION_OK)");
  }
  ~CancelQuery() override { PQfreeCancel(cancel_); }
  CancelQuery(const CancelQuery&) = delete;
  CancelQuery& operator=(const CancelQuery&) = delete;

  std::string text() const override { return text_; }
  bool may_block() const noexcept override { return true; }

  // libpq documents the PGcancel as read-only here, so several threads may use it at once.
  Outcome run(const ActionContext&) const override {
    if (error_) return Outcome::failed(*error_);
    char why[256] = "";
    if (PQcancel(cancel_, why, sizeof why) == 1) return Outcome::proceed();
    return Outcome::failed(
        {std::make_error_code(std::errc::connection_aborted), text_ + ": " + std::string(trim(why))});
  }

 private:
  const std::string text_;
  PGcancel* const cancel_;
};

}  // namespace

Action cancel_query(pg_conn* connection) { return Action(std::make_shared<const CancelQuery>(connection)); }

}  // namespace sockalarm::postgres
