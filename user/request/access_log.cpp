// SPDX-License-Identifier: Apache-2.0
#include <sockalarm/access_log.h>

#include <array>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "core/action_text.h"

namespace sockalarm {
namespace {

using std::chrono::nanoseconds;

// Nothing from outside may end the line or the quotes around it. As Apache does it.
void escape(std::string& out, std::string_view text) {
  if (text.empty()) {
    out += '-';
    return;
  }
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      char hex[5];
      std::snprintf(hex, sizeof hex, "\\x%02x", byte);
      out += hex;
    } else {
      out += c;
    }
  }
}

void number_or_dash(std::string& out, std::uint64_t number) {
  out += number == 0 ? "-" : std::to_string(number);
}

// Milliseconds to the microsecond; "-" for none.
void ms_or_dash(std::string& out, nanoseconds time) {
  if (time.count() == 0) {
    out += '-';
    return;
  }
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", std::chrono::duration<double, std::milli>(time).count());
  out += text;
}

// [10/Oct/2026:13:55:36 -0700], whatever the locale says.
void local_time(std::string& out, std::chrono::system_clock::time_point when) {
  static constexpr std::array<const char*, 12> kMonths{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t seconds = std::chrono::system_clock::to_time_t(when);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  const long offset = local.tm_gmtoff / 60;
  char text[64];
  std::snprintf(text, sizeof text, "[%02d/%s/%04d:%02d:%02d:%02d %c%02ld%02ld]", local.tm_mday,
                kMonths[static_cast<std::size_t>(local.tm_mon)], local.tm_year + 1900, local.tm_hour,
                local.tm_min, local.tm_sec, offset < 0 ? '-' : '+', std::labs(offset) / 60,
                std::labs(offset) % 60);
  out += text;
}

std::string utc_time(std::chrono::system_clock::time_point when) {
  const auto whole = std::chrono::floor<std::chrono::seconds>(when);
  const std::time_t seconds = std::chrono::system_clock::to_time_t(whole);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(when - whole).count();
  char text[64];
  std::snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ", utc.tm_year + 1900, utc.tm_mon + 1,
                utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, static_cast<long>(us));
  return text;
}

std::string_view whose(const Sounded& one) {
  return one.cause == StopCause::request_limit ? std::string_view("request") : std::string_view(one.call);
}

// A list, or "-". Names of calls are escaped too: nothing keeps a program from taking them from a client.
template <class Write>
void list_sounded(std::string& out, const Record& record, Write write) {
  std::string list;
  for (const Sounded& one : record.sounded) {
    if (!list.empty()) list += ',';
    write(list, one);
  }
  out += list.empty() ? "-" : list;
}

void write_status(std::string& out, const Record&, const Exchange& e) {
  number_or_dash(out, static_cast<std::uint64_t>(std::max(e.status, 0)));
}
void write_sounded(std::string& out, const Record& r, const Exchange&) {
  list_sounded(out, r, [](std::string& to, const Sounded& one) {
    escape(to, whose(one));
    to += ':' + detail::duration_text(one.limit);
  });
}
void write_failed(std::string& out, const Record& r, const Exchange&) {
  list_sounded(out, r, [](std::string& to, const Sounded& one) { escape(to, one.call); });
}

using Text = std::string;
using Writer = void (*)(Text&, const Record&, const Exchange&);

struct Directive {
  std::string_view name;
  Writer write;
};

constexpr Directive kDirectives[] = {
    {"h", [](Text& out, const Record&, const Exchange& e) { escape(out, e.remote_host); }},
    {"l", [](Text& out, const Record&, const Exchange&) { out += '-'; }},
    {"u", [](Text& out, const Record&, const Exchange& e) { escape(out, e.user); }},
    {"t", [](Text& out, const Record& r, const Exchange&) { local_time(out, r.began); }},
    {"r", [](Text& out, const Record&, const Exchange& e) { escape(out, e.request_line); }},
    {"s", write_status},
    {">s", write_status},
    {"b", [](Text& out, const Record&, const Exchange& e) { number_or_dash(out, e.bytes); }},
    {"B", [](Text& out, const Record&, const Exchange& e) { out += std::to_string(e.bytes); }},
    {"D", [](Text& out, const Record& r, const Exchange&) { out += std::to_string(r.total.count() / 1000); }},
    {"T", [](Text& out, const Record& r,
             const Exchange&) { out += std::to_string(r.total.count() / 1'000'000'000); }},
    {"U", [](Text& out, const Record& r, const Exchange&) { escape(out, r.path); }},
    {"X", [](Text& out, const Record& r, const Exchange&) { out += r.aborted ? 'X' : '+'; }},
    {"{referer}i", [](Text& out, const Record&, const Exchange& e) { escape(out, e.referer); }},
    {"{user-agent}i", [](Text& out, const Record&, const Exchange& e) { escape(out, e.user_agent); }},
    {"{sigpipe}e", [](Text& out, const Record& r, const Exchange&) { out += r.broken_pipe ? '1' : '-'; }},
    {"{aborted}x", [](Text& out, const Record& r, const Exchange&) { out += r.aborted ? '1' : '-'; }},
    {"{cause}x",
     [](Text& out, const Record& r, const Exchange&) { out += r.aborted ? to_string(r.cause) : "-"; }},
    {"{error}x", [](Text& out, const Record& r,
                    const Exchange&) { number_or_dash(out, static_cast<std::uint64_t>(r.error)); }},
    {"{busy}x", [](Text& out, const Record& r, const Exchange&) { ms_or_dash(out, r.busy); }},
    {"{sounded}x", write_sounded},
    {"{failed}x", write_failed},
    {"{shielded}x", [](Text& out, const Record& r, const Exchange&) { ms_or_dash(out, r.shielded); }},
    {"{held}x", [](Text& out, const Record& r, const Exchange&) { ms_or_dash(out, r.held_back); }},
    {"{limit}x", [](Text& out, const Record& r,
                    const Exchange&) { out += r.limit.count() == 0 ? "-" : detail::duration_text(r.limit); }},
    {"{override}x", [](Text& out, const Record& r, const Exchange&) { escape(out, r.override_matched); }},
    {"{pokes}x", [](Text& out, const Record& r, const Exchange&) { number_or_dash(out, r.pokes); }},
    {"{cleanups}x",
     [](Text& out, const Record& r, const Exchange&) {
       out += std::to_string(r.cleanups_run) + "/" + std::to_string(r.cleanups_failed);
     }},
};

// What stands after a '%': one letter, '>' and a letter, or {name} and a letter.
std::string_view directive_at(std::string_view text) {
  std::size_t length = 1;
  if (text.starts_with('>')) length = 2;
  if (text.starts_with('{')) {
    const auto end = text.find('}');
    length = end == std::string_view::npos ? text.size() : end + 2;
  }
  return text.substr(0, length);
}

// Names of headers and variables in any case, letters exactly.
bool same(std::string_view a, std::string_view b) {
  if (!a.starts_with('{')) return a == b;
  return a.back() == b.back() && std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
           return std::tolower(static_cast<unsigned char>(x)) == y;
         });
}

}  // namespace

Result<LogFormat> LogFormat::parse(std::string_view text) {
  LogFormat format;
  std::string literal;
  const auto flush = [&] {
    if (!literal.empty()) format.pieces_.push_back({std::exchange(literal, {}), nullptr});
  };
  while (!text.empty()) {
    if (text.front() != '%' || text.starts_with("%%")) {
      literal += text.front();
      text.remove_prefix(text.front() == '%' ? 2 : 1);
      continue;
    }
    const std::string_view wanted = directive_at(text.substr(1));
    Writer write = nullptr;
    std::string known;
    for (const Directive& one : kDirectives) {
      if (same(wanted, one.name)) write = one.write;
      known += (known.empty() ? "%" : " %") + std::string(one.name);
    }
    if (write == nullptr)
      return fail(Error(Errc::invalid_text,
                        "log format: '%" + std::string(wanted) + "' is unknown; expected one of " + known));
    flush();
    format.pieces_.push_back({"", write});
    text.remove_prefix(1 + wanted.size());
  }
  flush();
  return format;
}

std::string LogFormat::line(const Record& record, const Exchange& exchange) const {
  std::string out;
  for (const Piece& piece : pieces_) {
    if (piece.write != nullptr)
      piece.write(out, record, exchange);
    else
      out += piece.text;
  }
  return out;
}

namespace {

using Json = nlohmann::ordered_json;

double seconds(nanoseconds time) { return std::chrono::duration<double>(time).count(); }

// Facts that do not apply are absent.
template <class T>
void add(Json& json, const char* key, const T& value, bool applies) {
  if (applies) json[key] = value;
}

void add_exchange(Json& json, const Exchange& exchange) {
  const auto text = [&](const char* key, std::string_view value) { add(json, key, value, !value.empty()); };
  text("remote_host", exchange.remote_host);
  text("user", exchange.user);
  text("request", exchange.request_line);
  add(json, "status", exchange.status, exchange.status > 0);
  json["bytes"] = exchange.bytes;
  text("referer", exchange.referer);
  text("user_agent", exchange.user_agent);
}

Json sounded_json(const Record& record) {
  Json list = Json::array();
  for (const Sounded& one : record.sounded) {
    Json entry;
    entry["limit_of"] = one.cause == StopCause::request_limit ? "request" : "call";
    add(entry, "call", one.call, !one.call.empty());
    entry["limit"] = seconds(one.limit);
    entry["after"] = seconds(one.after);
    add(entry, "held", seconds(one.held), one.held.count() > 0);
    entry["fatal"] = one.fatal;
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace

std::string to_json(const Record& record, const Exchange& exchange) {
  Json json;
  json["began"] = utc_time(record.began);
  add_exchange(json, exchange);
  json["path"] = record.path;
  json["total"] = seconds(record.total);
  add(json, "limit", seconds(record.limit), record.limit.count() > 0);
  add(json, "override", record.override_matched, !record.override_matched.empty());
  add(json, "limits_off", true, record.limits_off);
  json["aborted"] = record.aborted;
  if (record.aborted) {
    json["cause"] = to_string(record.cause);
    add(json, "errno", record.error, record.error != 0);
    json["busy"] = seconds(record.busy);
  }
  add(json, "broken_pipe", true, record.broken_pipe);
  add(json, "sounded", sounded_json(record), !record.sounded.empty());
  add(json, "shielded", seconds(record.shielded), record.shielded.count() > 0);
  add(json, "held_back", seconds(record.held_back), record.held_back.count() > 0);
  add(json, "shields_left", record.shields_left, record.shields_left > 0);
  add(json, "pokes", record.pokes, record.pokes > 0);
  json["cleanups"] = record.cleanups_run;
  add(json, "cleanups_failed", record.cleanups_failed, record.cleanups_failed > 0);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace sockalarm
