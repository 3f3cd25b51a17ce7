// SPDX-License-Identifier: Apache-2.0
// What a build without libcurl has instead: make() fails, so nothing else is ever called.
#include "cli/http_client.h"

namespace sockalarm::cli {

struct HttpClient::Transfer {};

HttpClient::HttpClient(std::unique_ptr<Transfer> transfer) : transfer_(std::move(transfer)) {}
HttpClient::HttpClient(HttpClient&&) noexcept = default;
HttpClient& HttpClient::operator=(HttpClient&&) noexcept = default;
HttpClient::~HttpClient() = default;

Result<HttpClient> HttpClient::make(const HttpTarget&) {
  return fail(
      Error(Errc::unsupported, "sockalarm was built without libcurl, by which it would ask the observer"));
}
void HttpClient::start(const std::string&, std::optional<std::chrono::milliseconds>) {}
void HttpClient::wait(std::span<pollfd>, std::optional<std::chrono::milliseconds>) {}
bool HttpClient::busy() const { return transfer_ != nullptr; }
bool HttpClient::is_answered() const { return false; }
std::string HttpClient::take_data() { return {}; }
std::optional<Result<void>> HttpClient::take_end() { return std::nullopt; }

}  // namespace sockalarm::cli
