// SPDX-License-Identifier: Apache-2.0
#pragma once

// End the PostgreSQL query that runs for a client that leaves. Library sockalarm::postgres, over libpq:
//
//   const auto stop_query = sockalarm::repeated(sockalarm::postgres::cancel_query(connection));  // once
//   {
//     const auto alarm = watch.arm(stop_query).value();           // per request
//     result = PQexec(connection, "SELECT ...");                   // SQLSTATE 57014 if it was cancelled
//   }                                                              // waits for a cancel that is under way
//   // from here on the connection may be used again: no cancel of this request comes any more

#include <sockalarm/action.h>

struct pg_conn;  // PGconn of libpq-fe.h

namespace sockalarm::postgres {

// Ask the server to cancel what runs on `connection` at that moment: PQcancel(), on a helper thread, by a
// connection of its own. What is needed for it (PQgetCancel()) is taken now, so the PGconn is not touched
// later, and the thread that blocks in PQexec() is not disturbed; nothing is connected before the alarm
// fires. Build it anew after PQreset(). "pg_cancel:4711@/run/postgresql:5432", for people: the backend's
// process id.
//
// A cancel that arrives before its query has begun hits nothing: use it with repeated().
// It counts as running until the server has said that it has signalled the backend (it closes the
// connection), so after the end of the Alarm's scope, or cancel_and_wait(), it cannot hit the next query.
// That holds for PostgreSQL itself; a pooler in between must promise the same.
//
// Errors: invalid_action if the connection is not open. At run time: what PQcancel() says, when the server
// cannot be reached. It waits for that as long as TCP does (connect(2)) or the connection's tcp_user_timeout
// says, and keeps one helper thread busy meanwhile.
Action cancel_query(pg_conn* connection);

}  // namespace sockalarm::postgres
