//! The middle of the proxy: from a frame to its answer, by way of route, cluster and flight.
//!
//! ```text
//! Read ─▶ lobby ────▶ frames ─┬─ another method ──────────────────────▶ ERR_HANDLER_NOT_FOUND
//!                              └─ QueryConfig ─▶ route ─┬─ cluster ─▶ flight ─▶ Call ─▶ answer
//!                    Retry(asks) ─────────────────▲     ├─ unknown, unusable ─▶ own error
//!                        ▲                              └─ missing ─▶ misses ─▶ zk-watch ─┐
//!                        └────────────────────────────────────────────────────────────────┘
//! ```
//! What failed, and what the client reads:
//!
//! | what failed | `query_cfg_response.err` |
//! |---|---|
//! | no such table in the routes, or no table can have such a name | `ERR_OBJECT_NOT_FOUND` |
//! | the table's znode is unusable and there is no last good one | `ERR_INVALID_DATA` |
//! | no answer in time, ZooKeeper unreachable and the table not cached, a limit | `ERR_SERVICE_NOT_ACTIVE` |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use log::error;

use crate::activity::{self, SERVING};
use crate::client::ask::{Ask, answer_all};
use crate::client::connection::{Connection, Turn};
use crate::client::outbox::Reply;
use crate::metrics::{Metrics, OtherMethod, Shed};
use crate::patience::{Meanwhile, QueryTimeout, SLICE};
use crate::route::table::{Found, RouteTable};
use crate::upstream::cluster::{Cluster, Flight, Joined, Landed, Outcome, Routes};
use crate::upstream::flight::{Key, Lead};
use crate::wire::error_code::OwnError;
use crate::wire::frame::{Frame, Malformed};
use crate::wire::message::{Query, RequestId};
use crate::wire::{message, reply};
use crate::work::job::Job;
use crate::work::jobs::Jobs;
use crate::work::lobby::Lobby;

/// So many answers take a worker about a millisecond. With more, the next call of the same cluster goes to
/// another worker, and no client waits for this one to read it.
const MANY_ANSWERS: usize = 256;

/// What workers share: the way from a question to its answer.
pub struct Router {
    routes: Arc<RouteTable>,
    misses: Sender<Ask>,
    jobs: Jobs<Job>,
    lobby: Arc<Lobby>,
    metrics: Arc<Metrics>,
    query_timeout: Arc<QueryTimeout>,
}

impl Router {
    /// Tables that are not cached go to `misses`. A query has its answer within `query_timeout`.
    pub fn new(
        routes: Arc<RouteTable>,
        misses: Sender<Ask>,
        jobs: Jobs<Job>,
        lobby: Arc<Lobby>,
        metrics: Arc<Metrics>,
        query_timeout: Arc<QueryTimeout>,
    ) -> Self {
        Router { routes, misses, jobs, lobby, metrics, query_timeout }
    }

    /// Looks queries up again, or refuses them. The calls to make are added to `flights`.
    pub fn resume(&self, job: Job, flights: &mut Vec<Flight>) {
        match job {
            Job::Retry(asks) => asks.into_iter().for_each(|ask| self.route(ask, flights)),
            Job::Refuse(asks, why) => asks.into_iter().for_each(|ask| ask.refuse(why)),
            Job::Call(flight) => flights.push(flight),
            Job::Read | Job::Beat(_) | Job::Stop => unreachable!("a worker does these by itself"),
        }
    }

    /// Makes one of the calls here, and has the others made beside it. Blocks.
    pub fn take_off(&self, mut flights: Vec<Flight>, meanwhile: &dyn Meanwhile) {
        let last = flights.pop();
        self.hand_over(flights);
        if let Some(flight) = last {
            self.fly(flight, meanwhile);
        }
    }

    /// Has the calls made by other workers.
    pub fn hand_over(&self, flights: Vec<Flight>) {
        flights.into_iter().for_each(|flight| self.later(Job::Call(flight)));
    }

    fn later(&self, job: Job) {
        self.jobs.send(job);
    }

    /// Reads a connection and answers what can be answered at once. The calls to make are added to
    /// `flights`; `scratch` is the worker's read buffer.
    pub fn serve(
        &self,
        connection: &Arc<Connection>,
        scratch: &mut Vec<u8>,
        flights: &mut Vec<Flight>,
    ) {
        connection.readiness.begin();
        self.read(connection, scratch, flights);
    }

    /// One turn: reads once, and gives the connection back. False: there was nothing.
    pub fn read(
        &self,
        connection: &Arc<Connection>,
        scratch: &mut Vec<u8>,
        flights: &mut Vec<Flight>,
    ) -> bool {
        let asked_at = connection.noticed_at();
        let mut replies = Vec::new();
        let turn = connection
            .drain(scratch, |frame| self.take(connection, &frame, asked_at, &mut replies, flights));
        // Not before they are sent: a client that has stopped sending still gets them.
        match replies.is_empty() {
            true => connection.close_if_done(),
            false => connection.send(replies, 0),
        }
        if connection.end_turn(turn) {
            self.lobby.arrive([connection.clone()]);
        }
        turn != Turn::Empty
    }

    /// Takes one frame of a client: answers it, or puts its question on the way.
    fn take(
        &self,
        connection: &Arc<Connection>,
        frame: &Frame<'_>,
        asked_at: Instant,
        replies: &mut Vec<Reply>,
        flights: &mut Vec<Flight>,
    ) -> Result<(), Malformed> {
        let call = message::read_call(frame)?;
        let own = match &*call.method {
            message::QUERY_CONFIG => {
                let Query { table, args } = call.query()?;
                if !message::is_table_name(&table) {
                    self.own_error(call.id, OwnError::UnknownTable, asked_at)
                } else if !connection.begin_query(Ask::weight(&args)) {
                    self.own_error(call.id, OwnError::Unavailable, asked_at)
                } else {
                    // A worker looks up every slice, so an answer can be as late as that.
                    let deadline = asked_at + self.query_timeout.get().saturating_sub(SLICE);
                    let (connection, table) = (connection.clone(), table.into());
                    let ask = Ask::new(connection, call.id, table, &args, asked_at, deadline);
                    self.route(ask, flights);
                    return Ok(());
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
        replies.push(Reply::Own(own));
        Ok(())
    }

    fn own_error(&self, id: RequestId, error: OwnError, asked_at: Instant) -> Vec<u8> {
        self.metrics.own_error(error);
        self.metrics.latency.add(asked_at.elapsed(), 1);
        reply::own_error(id, error)
    }

    fn turn_away_from(&self, failing: &Cluster, ask: Ask) {
        self.metrics.shed.at(Shed::FailingCluster).add(1);
        failing.stats.unanswered.add(1);
        ask.refuse(OwnError::Unavailable);
    }

    fn route(&self, ask: Ask, flights: &mut Vec<Flight>) {
        match self.routes.find(&ask.table, Instant::now()) {
            Found::Cluster(cluster) => match cluster.join(ask) {
                Joined::Lead(lead) => flights.push(Flight { cluster, lead: Some(lead) }),
                Joined::Waiting => {}
                Joined::Refused(ask) => self.turn_away_from(&cluster, ask),
            },
            Found::Unusable => ask.refuse(OwnError::UnusableRoute),
            Found::Unknown => ask.refuse(OwnError::UnknownTable),
            Found::Held => ask.refuse(OwnError::Unavailable),
            Found::Missing => {
                self.metrics.misses.add(1);
                // It fails only when the proxy stops; then the query is dropped, which closes its connection.
                let _ = self.misses.send(ask);
            }
        }
    }

    /// Makes a call, and those that wait for its place, until none does.
    fn fly(&self, mut flight: Flight, meanwhile: &dyn Meanwhile) {
        let cluster = flight.cluster.clone();
        let course = Course { router: self, cluster: &cluster };
        while let Some(Lead { key, mut aboard }) = flight.lead.take() {
            let call = || self.call(&course, &key, &mut aboard, meanwhile);
            // It must land whatever happens.
            let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
                error!("cluster={}: a call panicked", cluster.name);
                Outcome::Failed
            });
            let Landed { next, refused } = cluster.land(&key, &outcome);
            flight.lead = next;
            if aboard.len() > MANY_ANSWERS {
                meanwhile.be_away();
                let lead = flight.lead.take();
                if lead.is_some() {
                    self.later(Job::Call(Flight { cluster: cluster.clone(), lead }));
                }
            }
            match outcome {
                Outcome::Answered(body) => {
                    if let Some(Ask { table, .. }) = aboard.first() {
                        cluster.stats.answered(table, body.counted_as, aboard.len() as u64);
                    }
                    answer_all(aboard, &cluster.name, &body);
                }
                Outcome::Moved => course.ask_again(aboard),
                Outcome::Failed => {
                    cluster.stats.unanswered.add(aboard.len() as u64);
                    aboard.into_iter().for_each(|ask| ask.refuse(OwnError::Unavailable));
                }
                Outcome::Abandoned => drop(aboard),
            }
            if !refused.is_empty() {
                self.turn_away(&course, refused);
            }
        }
    }

    fn call(
        &self,
        course: &Course<'_>,
        key: &Key,
        aboard: &mut Vec<Ask>,
        meanwhile: &dyn Meanwhile,
    ) -> Outcome {
        if let Some(outcome) = course.cluster.depart(key, aboard, course) {
            return outcome;
        }
        self.metrics.calls.add(1);
        self.metrics.flights_joined.add(aboard.len() as u64 - 1);
        let table = aboard.first().map_or("", |ask| &*ask.table);
        activity::now("calls a cluster", &[&course.cluster.name, table]);
        let outcome = course.cluster.call(key, aboard, course, meanwhile);
        activity::now(SERVING, &[]);
        outcome
    }

    /// These waited for a cluster that is found to fail.
    fn turn_away(&self, course: &Course<'_>, asks: Vec<Ask>) {
        let (moved, refused): (Vec<Ask>, Vec<Ask>) =
            asks.into_iter().partition(|ask| course.has_moved(&ask.table));
        course.ask_again(moved);
        refused.into_iter().for_each(|ask| self.turn_away_from(course.cluster, ask));
    }
}

/// The routes, as a call to one cluster sees them.
struct Course<'a> {
    router: &'a Router,
    cluster: &'a Arc<Cluster>,
}

impl Routes for Course<'_> {
    fn has_moved(&self, table: &str) -> bool {
        self.router.routes.has_moved(table, self.cluster)
    }

    fn ask_again(&self, asks: Vec<Ask>) {
        if !asks.is_empty() {
            self.router.later(Job::Retry(asks));
        }
    }
}
