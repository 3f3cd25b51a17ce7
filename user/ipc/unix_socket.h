// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sockalarm/fd_channel.h>
#include <sockalarm/result.h>
#include <sockalarm/unique_fd.h>

#include <string>
#include <utility>

// AF_UNIX stream sockets, close-on-exec, made so that nothing waits and nothing raises SIGPIPE.
namespace sockalarm::ipc {

Result<std::pair<UniqueFd, UniqueFd>> socket_pair();
Result<UniqueFd> listen_at(const std::string& path, int backlog);
Result<UniqueFd> connect_to(const std::string& path);
// -1 in the value: nobody is there.
Result<UniqueFd> accept_from(int listener);

// Can it carry a channel? Errors: not_a_socket, not_a_stream, not_connected, errno.
Result<void> check_connected(int socket);
// Turns off what would put other control messages between the descriptors.
void make_plain(int socket) noexcept;
Result<PeerCredentials> peer_credentials(int socket);

}  // namespace sockalarm::ipc
