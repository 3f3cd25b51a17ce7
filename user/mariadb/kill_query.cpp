// SPDX-License-Identifier: Apache-2.0
#include <errmsg.h>
#include <mysql.h>
#include <sockalarm/mariadb.h>

#include <memory>
#include <system_error>

#include "core/action_impl.h"

namespace sockalarm::mariadb {
namespace {

using detail::ActionContext;
using detail::Outcome;

struct Close {
  void operator()(MYSQL* connection) const { mysql_close(connection); }
};
using Connection = std::unique_ptr<MYSQL, Close>;

std::string copy(const char* text) { return text != nullptr ? text : ""; }
const char* null_if_empty(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

std::string text_of(unsigned long thread, const Account& account) {
  const std::string text = "kill_query:" + std::to_string(thread);
  if (account.host.empty()) return text + (account.unix_socket.empty() ? "" : "@" + account.unix_socket);
  return text + "@" + account.host + ":" + std::to_string(account.port != 0 ? account.port : 3306);
}

// The functions of Connector/C do not say const where they do not change anything.
class KillQuery final : public detail::ActionImpl {
 public:
  KillQuery(unsigned long thread, Account account)
      : thread_(thread), account_(std::move(account)), text_(text_of(thread, account_)) {
    if (thread == 0)
      error_ = Error(Errc::invalid_action,
                     text_ + ": there is nothing to kill; expected a connection that is open");
    else if (account_.connect_timeout.count() < 1)
      error_ = Error(Errc::invalid_action, text_ + ": a connect_timeout of " +
                                               std::to_string(account_.connect_timeout.count()) +
                                               " s; expected 1 s or more");
  }

  std::string text() const override { return text_; }
  bool may_block() const noexcept override { return true; }

  Outcome run(const ActionContext&) const override {
    if (error_) return Outcome::failed(*error_);
    const Connection second(mysql_init(nullptr));
    if (!second) return Outcome::failed(Error::from_errno(ENOMEM, text_));
    prepare(second.get());
    if (mysql_real_connect(second.get(), null_if_empty(account_.host), account_.user.c_str(),
                           account_.password.c_str(), nullptr, account_.port,
                           null_if_empty(account_.unix_socket), 0) == nullptr)
      return failed(second.get(), "connecting");
    const std::string statement = "KILL QUERY " + std::to_string(thread_);
    if (mysql_real_query(second.get(), statement.data(), statement.size()) == 0) return Outcome::proceed();
    const unsigned int code = mysql_errno(second.get());
    return failed(second.get(), code >= CR_MIN_ERROR && code <= CR_MAX_ERROR
                                    ? "the connection broke, so the kill may still come"
                                    : "the server refuses");
  }

 private:
  void prepare(MYSQL* second) const {
    const auto timeout = static_cast<unsigned int>(account_.connect_timeout.count());
    mysql_optionsv(second, MYSQL_OPT_CONNECT_TIMEOUT, &timeout);
    const unsigned int protocol = account_.host.empty() ? MYSQL_PROTOCOL_SOCKET : MYSQL_PROTOCOL_TCP;
    mysql_optionsv(second, MYSQL_OPT_PROTOCOL, &protocol);
    if (!account_.tls_ca.empty()) mysql_optionsv(second, MYSQL_OPT_SSL_CA, account_.tls_ca.c_str());
    if (!account_.tls_cert.empty()) mysql_optionsv(second, MYSQL_OPT_SSL_CERT, account_.tls_cert.c_str());
    if (!account_.tls_key.empty()) mysql_optionsv(second, MYSQL_OPT_SSL_KEY, account_.tls_key.c_str());
    const my_bool yes = 1;
    if (account_.tls_required) mysql_optionsv(second, MYSQL_OPT_SSL_ENFORCE, &yes);
    if (account_.tls_verify) mysql_optionsv(second, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, &yes);
  }

  Outcome failed(MYSQL* second, const char* what) const {
    return Outcome::failed({std::make_error_code(std::errc::connection_aborted),
                            text_ + ": " + what + ": " + mysql_error(second) + " (" +
                                std::to_string(mysql_errno(second)) + ")"});
  }

  const unsigned long thread_;
  const Account account_;
  const std::string text_;
};

}  // namespace

Account Account::of(st_mysql* connection) {
  Account account;
  account.unix_socket = copy(connection->unix_socket);
  if (account.unix_socket.empty()) {
    account.host = copy(connection->host);
    account.port = connection->port;
  }
  account.user = copy(connection->user);
  account.password = copy(connection->passwd);
  account.tls_ca = copy(connection->options.ssl_ca);
  account.tls_cert = copy(connection->options.ssl_cert);
  account.tls_key = copy(connection->options.ssl_key);
  account.tls_required = mysql_get_ssl_cipher(connection) != nullptr;
  my_bool verify = 0;
  if (mysql_get_optionv(connection, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, &verify) == 0)
    account.tls_verify = verify != 0;
  return account;
}

Action kill_query(st_mysql* connection, Account account) {
  const unsigned long thread = connection != nullptr ? mysql_thread_id(connection) : 0;
  return Action(std::make_shared<const KillQuery>(thread, std::move(account)));
}

Action kill_query(st_mysql* connection) {
  return kill_query(connection, connection != nullptr ? Account::of(connection) : Account());
}

}  // namespace sockalarm::mariadb
