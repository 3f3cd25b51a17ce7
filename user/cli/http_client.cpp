// SPDX-License-Identifier: Apache-2.0
#include "cli/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <climits>
#include <utility>
#include <vector>

#include "base/text.h"
#include "cli/usage.h"

namespace sockalarm::cli {
namespace {

constexpr std::size_t kMostData = std::size_t{64} << 20;  // that nobody has taken
constexpr std::size_t kMostWords = 200;                   // of an answer that is an error
constexpr long kConnectPatience = 5000;                   // ms

// CURL and CURLM are both void.
struct EasyCleanup {
  void operator()(CURL* easy) const { ::curl_easy_cleanup(easy); }
};
struct MultiCleanup {
  void operator()(CURLM* multi) const { ::curl_multi_cleanup(multi); }
};

bool is_initialized() {
  static const bool done = ::curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  return done;
}

}  // namespace

struct HttpClient::Transfer {
  ~Transfer() { leave(); }

  void leave() {
    if (std::exchange(active, false)) ::curl_multi_remove_handle(multi.get(), easy.get());
  }

  long status() const {
    long code = 0;
    ::curl_easy_getinfo(easy.get(), CURLINFO_RESPONSE_CODE, &code);
    return code;
  }

  static std::size_t on_data(char* bytes, std::size_t, std::size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (transfer.status() != 200) {
      transfer.words.append(bytes, std::min(count, kMostWords - std::min(kMostWords, transfer.words.size())));
      return count;
    }
    if (transfer.data.size() + count > kMostData) return 0;  // not all was taken: an error
    transfer.data.append(bytes, count);
    return count;
  }

  // An empty line ends the headers; after those of "100 Continue" come others.
  static std::size_t on_header(char* bytes, std::size_t, std::size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    transfer.accepted = transfer.accepted || (trim({bytes, count}).empty() && transfer.status() == 200);
    return count;
  }

  Result<void> ended(CURLcode code) const {
    if (code == CURLE_OK && status() == 200) return {};
    if (code == CURLE_OK)
      return fail(Error(Errc::unsupported, where + " answered " + std::to_string(status()) +
                                               (words.empty() ? "" : ": " + escaped(trim(words)))));
    long number = 0;
    ::curl_easy_getinfo(easy.get(), CURLINFO_OS_ERRNO, &number);
    if (code == CURLE_COULDNT_CONNECT && number != 0)
      return fail(Error::from_errno(static_cast<int>(number), where));
    return fail(Error(Errc::not_connected,
                      where + ": " + (why[0] != '\0' ? escaped(why) : ::curl_easy_strerror(code))));
  }

  std::string where, base;
  std::unique_ptr<CURLM, MultiCleanup> multi;
  std::unique_ptr<CURL, EasyCleanup> easy;
  bool active = false, accepted = false;
  std::string data, words;
  std::optional<Result<void>> end;
  char why[CURL_ERROR_SIZE] = "";
};

HttpClient::HttpClient(std::unique_ptr<Transfer> transfer) : transfer_(std::move(transfer)) {}
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

Result<HttpClient> HttpClient::make(const HttpTarget& target) {
  auto transfer = std::make_unique<Transfer>();
  const bool by_socket = target.url.empty();
  if (!by_socket && !target.url.starts_with("http://") && !target.url.starts_with("https://"))
    return fail(usage("--url " + sockalarm::quoted(escaped(target.url)) +
                      " is none; expected one such as http://127.0.0.1:9465"));
  if (is_initialized()) {
    transfer->multi.reset(::curl_multi_init());
    transfer->easy.reset(::curl_easy_init());
  }
  if (!transfer->multi || !transfer->easy)
    return fail(Error(Errc::unsupported, "libcurl cannot be initialized"));
  transfer->where = escaped(by_socket ? target.socket : target.url);
  transfer->base = by_socket ? "http://localhost" : target.url;
  while (transfer->base.ends_with('/')) transfer->base.pop_back();
  CURL* const easy = transfer->easy.get();
  if (by_socket && ::curl_easy_setopt(easy, CURLOPT_UNIX_SOCKET_PATH, target.socket.c_str()) != CURLE_OK)
    return fail(Error(Errc::unsupported, "this libcurl knows no Unix sockets"));
  ::curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  ::curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");  // of http_proxy nobody thinks who asks this machine
  ::curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, kConnectPatience);
  ::curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->why);
  ::curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, &Transfer::on_header);
  ::curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer.get());
  ::curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, &Transfer::on_data);
  ::curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer.get());
  return HttpClient(std::move(transfer));
}

void HttpClient::start(const std::string& path, std::optional<std::chrono::milliseconds> patience) {
  Transfer& transfer = *transfer_;
  transfer.leave();
  transfer.data.clear();
  transfer.words.clear();
  transfer.end.reset();
  transfer.accepted = false;
  transfer.why[0] = '\0';
  ::curl_easy_setopt(transfer.easy.get(), CURLOPT_URL, (transfer.base + path).c_str());
  ::curl_easy_setopt(transfer.easy.get(), CURLOPT_TIMEOUT_MS,
                     static_cast<long>(patience.value_or(std::chrono::milliseconds(0)).count()));
  if (const auto refused = ::curl_multi_add_handle(transfer.multi.get(), transfer.easy.get());
      refused != CURLM_OK)
    transfer.end = fail(Error(Errc::unsupported, std::string("libcurl: ") + ::curl_multi_strerror(refused)));
  else
    transfer.active = true;
}

void HttpClient::wait(std::span<pollfd> others, std::optional<std::chrono::milliseconds> longest) {
  Transfer& transfer = *transfer_;
  std::vector<curl_waitfd> also;
  also.reserve(others.size());
  for (const pollfd& other : others)
    also.push_back({.fd = other.fd, .events = CURL_WAIT_POLLIN, .revents = 0});
  int running = 0;
  ::curl_multi_perform(transfer.multi.get(), &running);
  const std::size_t before = transfer.data.size();
  if (transfer.active == (running != 0) && before == 0) {
    const auto most = longest ? std::clamp<long long>(longest->count(), 0, INT_MAX) : INT_MAX;
    ::curl_multi_poll(transfer.multi.get(), also.data(), static_cast<unsigned>(also.size()),
                      static_cast<int>(most), nullptr);
    ::curl_multi_perform(transfer.multi.get(), &running);
  }
  for (std::size_t i = 0; i < others.size(); ++i)
    others[i].revents = (also[i].revents & CURL_WAIT_POLLIN) != 0 ? POLLIN : 0;
  int left = 0;
  while (const CURLMsg* const message = ::curl_multi_info_read(transfer.multi.get(), &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    const CURLcode code = message->data.result;  // the message is gone with the handle
    transfer.end = transfer.ended(code);
    transfer.leave();
    break;
  }
}

bool HttpClient::busy() const { return transfer_->active; }

bool HttpClient::is_answered() const { return transfer_->accepted; }

std::string HttpClient::take_data() { return std::exchange(transfer_->data, {}); }

std::optional<Result<void>> HttpClient::take_end() { return std::exchange(transfer_->end, std::nullopt); }

}  // namespace sockalarm::cli
