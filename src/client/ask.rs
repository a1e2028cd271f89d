//! One query of one client, which must get exactly one answer.
//!
//! The value *is* the duty to answer: answering consumes it, and dropping it without an answer closes the connection.
//! So a query can fail, but its client never waits for nothing.

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};

use crate::client::connection::{CloseReason, Connection};
use crate::client::outbox::{Body, Reply};
use crate::logging::{self, Throttle};
use crate::metrics::{Reason, Unfit};
use crate::upstream::sharing::{Key, Waiter};
use crate::wire::error_code::{self, OwnError};
use crate::wire::host_port::HostPortFields;
use crate::wire::message::RequestId;
use crate::wire::reply::{self, QueryHead};
use crate::wire::result::Unexpected;

/// A QueryConfig that waits for its answer.
pub struct Ask {
    /// `None` once answered.
    connection: Option<Arc<Connection>>,
    id: RequestId,
    pub table: Box<str>,
    /// The arguments, encoded as in THFT.
    pub args: Key,
    /// When `accept` noticed the bytes of the query.
    asked_at: Instant,
    /// When it must be answered.
    pub deadline: Instant,
}

impl Ask {
    /// The caller must have got `true` from `connection.begin_query`.
    pub fn new(
        connection: Arc<Connection>,
        id: RequestId,
        table: Box<str>,
        args: &[u8],
        asked_at: Instant,
        deadline: Instant,
    ) -> Self {
        Ask { connection: Some(connection), id, table, args: Arc::from(args), asked_at, deadline }
    }

    /// The weight of a query in limits on queries under way: one for each KiB of arguments that it begins, because a
    /// waiting query needs memory. 240 partition indices fit in the first KiB.
    pub fn weight(args: &[u8]) -> u32 {
        1 + args.len() as u32 / 1024
    }

    /// Turns the query into the proxy's own error. Returns the connection to send it to, the reply, and the weight of
    /// the query.
    pub fn refused(mut self, error: OwnError, now: Instant) -> (Arc<Connection>, Reply, u32) {
        let connection = self.connection.take().expect("an Ask is answered once");
        connection.metrics().own_error(error);
        self.count_answer(&connection, "none", error.name(), now);
        let weight = Self::weight(&self.args);
        (connection, Reply::Own(reply::own_error(self.id, error)), weight)
    }

    /// How many more queries may be under way, over all connections.
    pub fn free_queries(&self) -> usize {
        self.connection.as_ref().map_or(0, |c| c.share.free_queries(&c.limits))
    }

    /// Whether the connection is closed, so that no client waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        self.connection.as_ref().is_none_or(|c| c.is_closed())
    }

    /// Whether the client gets no more answers because it leaves too many unsent, see [`Connection::is_flooded`].
    fn is_flooded(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.is_flooded())
    }

    fn pass(
        mut self,
        cluster: &str,
        body: &Arc<Body>,
        now: Instant,
    ) -> (Arc<Connection>, Reply, u32) {
        let connection = self.connection.take().expect("an Ask is answered once");
        connection.record_use(&self.table, now);
        let weight = Self::weight(&self.args);
        let host_port_fields = match self.id {
            // C++ clients read only the host_port fields.
            RequestId::Rdsn(_) => HostPortFields::Keep,
            RequestId::Thft(_) => connection.host_port_fields,
        };
        let unfit = |why| self.count_unfit(&connection, cluster, why);
        if matches!(self.id, RequestId::Rdsn(_)) && !body.is_fit_for_cpp(unfit) {
            let error = OwnError::Unavailable;
            connection.metrics().own_error(error);
            self.count_answer(&connection, "none", error.name(), now);
            return (connection, Reply::Own(reply::own_error(self.id, error)), weight);
        }
        self.count_answer(&connection, cluster, error_code::COUNTED[body.counted_as], now);
        let result = body.result_with(host_port_fields, unfit);
        let head = QueryHead::new(self.id, result.len());
        (connection, Reply::Passed { head, body: body.clone(), host_port_fields }, weight)
    }

    /// Counts and logs a MetaServer's answer that clients of this kind cannot use as it is.
    fn count_unfit(&self, connection: &Connection, cluster: &str, why: Unexpected) {
        // Each kind has its own throttle, so that neither hides the other.
        static UNFIT: [Throttle; 2] = [const { Throttle::new() }; 2];
        let (unfit, what) = match self.id {
            RequestId::Rdsn(_) => (Unfit::Rdsn, "it would abort C++ clients, which get an error"),
            RequestId::Thft(_) => (Unfit::HostPortFields, "its host_port fields stay in it"),
        };
        connection.metrics().unfit.at(unfit).add(1);
        if let Some(hidden) = UNFIT[unfit.index()].pass() {
            let table = &self.table;
            warn!("table={table} cluster={cluster}: unexpected answer, {what}: {why}{hidden}");
        }
    }

    /// Counts the answer, and writes a line to the access log if the answer is in the sample.
    fn count_answer(&self, connection: &Connection, cluster: &str, err: &str, now: Instant) {
        let took = now.saturating_duration_since(self.asked_at);
        connection.metrics().latency.add(took, 1);
        if logging::is_access_sample() {
            let (table, client, us) = (&self.table, connection.peer, took.as_micros());
            info!(target: "access", "table={table} cluster={cluster} client={client} err={err} latency_us={us}");
        }
    }
}

impl Waiter for Ask {
    fn host(&self) -> IpAddr {
        // An answered query has no connection, and waits for nothing.
        self.connection.as_ref().map_or(IpAddr::from([0; 4]), |c| c.host())
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_gone(&self) -> bool {
        Ask::is_gone(self)
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close(CloseReason::QueryLost);
            connection.end_queries(Self::weight(&self.args));
        }
    }
}

/// Sends a cluster's answers; answers to one client leave with one write.
pub fn answer_all(answers: Vec<(Ask, Arc<Body>)>, cluster: &str) {
    let now = Instant::now();
    let answer = |(ask, body): (Ask, Arc<Body>)| match ask.is_flooded() {
        true => ask.refused(OwnError::Unavailable, now),
        false => ask.pass(cluster, &body, now),
    };
    send_all(answers.into_iter().map(answer).collect());
}

/// Refuses queries; refusals to one client leave with one write.
pub fn refuse_all(asks: impl IntoIterator<Item = (Ask, OwnError)>) {
    let now = Instant::now();
    send_all(asks.into_iter().map(|(ask, why)| ask.refused(why, now)).collect());
}

fn send_all(mut replies: Vec<(Arc<Connection>, Reply, u32)>) {
    // The sort is stable, so each client gets its answers in order.
    replies.sort_by_key(|(connection, ..)| Arc::as_ptr(connection));
    let mut replies = replies.into_iter().peekable();
    let mut together: Vec<Reply> = Vec::new();
    let mut weight = 0;
    while let Some((connection, reply, more)) = replies.next() {
        together.push(reply);
        weight += more;
        let is_last = replies.peek().is_none_or(|(next, ..)| !Arc::ptr_eq(next, &connection));
        if is_last {
            connection.send(together.drain(..), mem::take(&mut weight));
        }
    }
}
