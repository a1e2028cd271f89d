//! The path from a frame to its answer, by route and cluster.
//!
//! ```text
//! readable ─▶ frames ─┬─ another method ────────────────────────────▶ ERR_HANDLER_NOT_FOUND
//!                     └─ QueryConfig ─▶ route ─┬─ cluster ─▶ join ─▶ a call ─▶ answer
//!        Retry(asks) ────────────────────▲     ├─ unknown, unusable ─▶ own error
//!            ▲                                 └─ missing ─▶ misses ─▶ zk-watch ─┐
//!            └───────────────────────────────────────────────────────────────────┘
//! ```
//! The error that the client gets for each failure:
//!
//! | what failed | `query_cfg_response.err` |
//! |---|---|
//! | no such table in the routes, or no table can have such a name | `ERR_OBJECT_NOT_FOUND` |
//! | the table's znode is unusable and there is no last good one | `ERR_INVALID_DATA` |
//! | no answer in time, ZooKeeper unreachable and the table not cached, a limit | `ERR_SERVICE_NOT_ACTIVE` |

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::client::ask::Ask;
use crate::client::connection::{Connection, Turn};
use crate::client::outbox::Reply;
use crate::metrics::{Metrics, OtherMethod, Shed};
use crate::patience::QueryTimeout;
use crate::route::table::{Found, RouteTable};
use crate::upstream::cluster::{Cluster, Joined, Place};
use crate::wire::error_code::OwnError;
use crate::wire::frame::{Frame, Malformed};
use crate::wire::message::{Query, RequestId};
use crate::wire::{message, reply};
use crate::work::job::Jobs;

/// Routes queries. All workers share one.
pub struct Router {
    routes: Arc<RouteTable>,
    misses: Sender<Ask>,
    jobs: Arc<Jobs>,
    metrics: Arc<Metrics>,
    query_timeout: Arc<QueryTimeout>,
}

impl Router {
    /// Queries for tables that are not cached go to `misses`. Each query is answered within `query_timeout`.
    pub fn new(
        routes: Arc<RouteTable>,
        misses: Sender<Ask>,
        jobs: Arc<Jobs>,
        metrics: Arc<Metrics>,
        query_timeout: Arc<QueryTimeout>,
    ) -> Self {
        Router { routes, misses, jobs, metrics, query_timeout }
    }

    /// Reads a connection for one turn, and answers queries that need no cluster. Adds the calls to make to `places`;
    /// `scratch` is the worker's read buffer.
    pub fn serve(
        &self,
        connection: &Arc<Connection>,
        scratch: &mut Vec<u8>,
        places: &mut Vec<Place>,
    ) {
        connection.readiness.begin();
        self.read(connection, scratch, places);
    }

    /// Reads a connection for one turn and gives it back; a client with more to read goes to the end of the queue.
    /// False: there was nothing to read.
    pub fn read(
        &self,
        connection: &Arc<Connection>,
        scratch: &mut Vec<u8>,
        places: &mut Vec<Place>,
    ) -> bool {
        let asked_at = connection.noticed_at();
        let (mut replies, mut weight) = (Vec::new(), 0);
        let turn = connection.drain(scratch, |frame| {
            if let Some((reply, more)) = self.handle_frame(connection, &frame, asked_at, places)? {
                replies.push(reply);
                weight += more;
            }
            Ok(())
        });
        // Close only after the replies are sent: a client that has closed its sending side still gets them.
        match replies.is_empty() {
            true => connection.close_if_done(),
            false => connection.send(replies, weight),
        }
        if connection.end_turn(turn) {
            self.jobs.arrive([(connection.host(), connection.clone())]);
        }
        turn != Turn::Empty
    }

    /// Returns the answer to one frame, with the weight of its query, if the proxy can answer at once. Otherwise routes
    /// the query.
    fn handle_frame(
        &self,
        connection: &Arc<Connection>,
        frame: &Frame<'_>,
        asked_at: Instant,
        places: &mut Vec<Place>,
    ) -> Result<Option<(Reply, u32)>, Malformed> {
        let call = message::read_call(frame)?;
        let own = match call.method {
            message::QUERY_CONFIG => {
                let Query { table, args } = call.query()?;
                if !message::is_table_name(&table) {
                    self.own_error(call.id, OwnError::UnknownTable, asked_at)
                } else if !connection.begin_query(Ask::weight(&args)) {
                    self.own_error(call.id, OwnError::Unavailable, asked_at)
                } else {
                    let deadline = asked_at + self.query_timeout.budget();
                    let connection = connection.clone();
                    let ask = Ask::new(connection, call.id, table, &args, asked_at, deadline);
                    return Ok(self.route(ask, places).err().map(|(ask, why)| {
                        let (_, reply, weight) = ask.refused(why, Instant::now());
                        (reply, weight)
                    }));
                }
            }
            message::NEGOTIATION => {
                self.metrics.other_methods.at(OtherMethod::Negotiation).add(1);
                reply::negotiation(call.id)
            }
            other => {
                self.metrics.other_methods.at(OtherMethod::NotServed).add(1);
                reply::handler_not_found(other, call.id)
            }
        };
        Ok(Some((Reply::Own(own), 0)))
    }

    fn own_error(&self, id: RequestId, error: OwnError, asked_at: Instant) -> Vec<u8> {
        self.metrics.own_error(error);
        self.metrics.latency.add(asked_at.elapsed(), 1);
        reply::own_error(id, error)
    }

    fn turn_away_from(&self, cluster: &Cluster, ask: Ask, why: Shed) -> (Ask, OwnError) {
        self.metrics.shed.at(why).add(1);
        cluster.stats.unanswered.add(1);
        (ask, OwnError::Unavailable)
    }

    /// Sends a query to the cluster of its table, or returns the error to refuse it with. Adds the calls to make to
    /// `places`.
    pub fn route(&self, ask: Ask, places: &mut Vec<Place>) -> Result<(), (Ask, OwnError)> {
        let version = self.routes.version();
        match self.routes.find(&ask.table, Instant::now()) {
            Found::Cluster(cluster) => match cluster.join(ask, version) {
                Joined::Call(place) => places.push(place),
                Joined::Waiting => {}
                Joined::Refused(ask, why) => {
                    return Err(self.turn_away_from(&cluster, ask, why));
                }
            },
            Found::Unusable => return Err((ask, OwnError::UnusableRoute)),
            Found::Unknown => return Err((ask, OwnError::UnknownTable)),
            Found::Held => return Err((ask, OwnError::Unavailable)),
            Found::Missing => {
                self.metrics.misses.add(1);
                // The send fails only when the proxy stops. The query is then dropped, which closes its connection.
                let _ = self.misses.send(ask);
            }
        }
        Ok(())
    }
}
