//! Whether an answer was allowed. Pure: the true history, the weather and the answers come in, verdicts come out.
//!
//! ```text
//!  fresh_since          query sent          answered
//!      │◀── calm bound, or trouble ──▶│           │
//! ─────┴──────────────────────────────┴───────────┴────▶
//!      └─ some version that may have been current in ┘
//!         here, and is not older than one seen before,
//!         must explain the answer
//! ```
//! Answers that are allowed for each version:
//!
//! | version | answer |
//! |---|---|
//! | cluster | that cluster's |
//! | junk | the cluster of the last good version that the proxy can have read; if it may know none, unusable |
//! | absent | unknown |
//! | any, in trouble | unavailable, unless the table is cached for certain |
//!
//! A version that was replaced before it had to be known may never have been read. A table is cached for certain when
//! an earlier answer through this proxy showed it, and it was not deleted since.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use crate::history::{History, Time, Value};
use crate::weather::{View, Weather};

/// No query is under way for longer; what was seen before that has been seen by all who ask now.
pub const LONGEST_QUERY: Duration = Duration::from_secs(10);

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The answer of this cluster's MetaServer.
    Cluster(usize),
    /// `ERR_OBJECT_NOT_FOUND`.
    Unknown,
    /// `ERR_INVALID_DATA`.
    Unusable,
    /// `ERR_SERVICE_NOT_ACTIVE`.
    Unavailable,
    /// Something that no proxy should say, or no answer at all.
    Other(String),
}

/// A query and its answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Through which proxy, about which table.
    pub view: View,
    /// Just before it was sent.
    pub sent: Time,
    /// Just after the answer came, or was not waited for any more.
    pub answered: Time,
    /// The answer.
    pub told: Told,
}

/// An answer that was not allowed.
#[derive(Debug)]
pub struct Wrong {
    /// The answer.
    pub asked: Asked,
    /// The promise that it breaks.
    pub why: String,
    /// The query had to know of all that was written before this.
    pub fresh_since: Time,
    /// The oldest version that the answer may show.
    pub oldest: usize,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked { view: View { proxy, table }, sent, answered, told } = &self.asked;
        write!(
            f,
            "proxy {proxy}, table {table}, sent at {sent:.3?}, answered at {answered:.3?} with {told:?}: {}; \
             it must know of all before {:.3?}, and show version {} or later",
            self.why, self.fresh_since, self.oldest
        )
    }
}

/// An answer that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// How old the newest version was that explains it, when the query was sent.
    pub age: Duration,
    /// Whether the table was cached for certain.
    pub cached: bool,
}

/// The newest version that clients of one proxy had seen of one table, from a certain moment on.
#[derive(Clone, Copy)]
struct Seen {
    at: Time,
    /// No older version may be shown to a query sent later.
    version: usize,
    /// The newest version that named a cluster.
    good: Option<usize>,
}

const NOTHING_SEEN: Seen = Seen { at: Time::ZERO, version: 0, good: None };

/// Remembers what was seen.
#[derive(Default)]
pub struct Checker {
    /// The oldest first.
    seen: HashMap<View, VecDeque<Seen>>,
}

impl Checker {
    /// Judges an answer; answers must come in the order in which they were given. `history` must hold every write sent
    /// before `answered`, and `weather` every trouble begun before it.
    pub fn check(
        &mut self,
        history: &History,
        weather: &Weather,
        asked: &Asked,
    ) -> Result<Right, Wrong> {
        let Asked { view, sent, answered, ref told } = *asked;
        let seen = self.seen_before(view, sent);
        let fresh_since = weather.fresh_since(view, sent);
        let window = history.current_in(fresh_since, answered);
        let oldest = seen.version.max(window.start);
        let wrong = |why: String| Err(Wrong { asked: asked.clone(), why, fresh_since, oldest });

        if weather.is_mute(view, sent, answered) && matches!(told, Told::Other(_)) {
            return Ok(Right { age: Duration::ZERO, cached: false });
        }
        let took = answered - sent;
        if took > weather.bounds.answer && !weather.is_mute(view, sent, answered) {
            return wrong(format!("it took {took:.3?}, longer than {:?}", weather.bounds.answer));
        }
        if weather.is_gone(view, sent, answered)
            && matches!(told, Told::Unknown | Told::Unavailable)
        {
            return Ok(Right { age: Duration::ZERO, cached: false });
        }
        let cached = |at: usize| {
            let since = |good: usize| &history.versions()[good + 1..=at.max(good)];
            seen.good.is_some_and(|good| since(good).iter().all(|v| v.value != Value::Absent))
        };
        let is_cached = cached(window.end - 1);
        if is_cached && took > weather.bounds.cached && !weather.is_mute(view, sent, answered) {
            let bound = weather.bounds.cached;
            return wrong(format!("the table is cached, and it took {took:.3?}, not {bound:?}"));
        }
        match told {
            Told::Other(what) => return wrong(format!("no answer to accept: {what}")),
            Told::Unavailable if is_cached => {
                return wrong(
                    "the table is cached, and must be served whatever happens".to_owned(),
                );
            }
            Told::Unavailable if weather.is_calm(view, sent, answered) => {
                return wrong("nothing was wrong with ZooKeeper".to_owned());
            }
            Told::Unavailable => return Ok(Right { age: Duration::ZERO, cached: false }),
            _ => {}
        }

        let explains = |&at: &usize| {
            may_be_told(history, weather, view, at, told)
                && !(*told == Told::Unusable && cached(at))
        };
        let Some(first) = (oldest..window.end).find(explains) else {
            let why =
                if (oldest..window.end).any(|at| may_be_told(history, weather, view, at, told)) {
                    "the last good route is lost"
                } else if window.clone().any(|at| may_be_told(history, weather, view, at, told)) {
                    "it is older than what was seen before"
                } else {
                    "no version that was current then explains it"
                };
            return wrong(why.to_owned());
        };
        let newest = (first..window.end).rfind(explains).unwrap_or(first);
        let good = matches!(told, Told::Cluster(_)).then_some(first);
        self.saw(asked, first, good);
        let replaced = history.versions().get(newest + 1).and_then(|next| next.returned);
        let age = replaced.map_or(Duration::ZERO, |at| sent.saturating_sub(at));
        Ok(Right { age, cached: is_cached })
    }

    fn seen_before(&self, view: View, at: Time) -> Seen {
        let seen = self.seen.get(&view);
        let before = seen.and_then(|seen| seen.iter().rev().find(|seen| seen.at <= at));
        before.copied().unwrap_or(NOTHING_SEEN)
    }

    fn saw(&mut self, asked: &Asked, version: usize, good: Option<usize>) {
        let seen = self.seen.entry(asked.view).or_default();
        let last = seen.back().copied().unwrap_or(NOTHING_SEEN);
        let now = Seen {
            at: asked.answered,
            version: last.version.max(version),
            good: last.good.max(good),
        };
        // An answer that shows nothing new needs no entry of its own.
        if seen.is_empty() || (now.version, now.good) != (last.version, last.good) {
            seen.push_back(now);
        }
        while seen.get(1).is_some_and(|next| next.at + LONGEST_QUERY < asked.answered) {
            seen.pop_front();
        }
    }
}

/// Whether a proxy that knows of the version `at` and of nothing newer may say this.
pub fn may_be_told(
    history: &History,
    weather: &Weather,
    view: View,
    at: usize,
    told: &Told,
) -> bool {
    let versions = history.versions();
    match (versions[at].value, told) {
        (Value::Cluster(cluster), Told::Cluster(of)) => cluster == *of,
        (Value::Junk, Told::Cluster(of)) => {
            for before in (0..at).rev() {
                match versions[before].value {
                    Value::Cluster(cluster) if cluster == *of => return true,
                    Value::Junk => continue,
                    _ => {}
                }
                let next_sent = versions[before + 1].sent;
                let had_to_be_known = versions[before]
                    .returned
                    .is_some_and(|at| at < weather.fresh_since(view, next_sent));
                if had_to_be_known {
                    return false;
                }
            }
            false
        }
        (Value::Junk, Told::Unusable) | (Value::Absent, Told::Unknown) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weather::{Bounds, Excuse, Whom};
    use Told::{Cluster, Unavailable, Unknown, Unusable};

    const BOUNDS: Bounds = Bounds::PROMISED;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    /// Each version takes 10 ms to be written.
    fn history(writes: &[(f64, Value)]) -> History {
        let mut history = History::new();
        for (sent, value) in writes {
            history.sent(*value, at(*sent));
            history.returned(None, at(sent + 0.010));
        }
        history
    }

    fn trouble(from: f64, until: f64) -> Weather {
        let mut weather = Weather::new(BOUNDS);
        let ticket = weather.begin("cut", Whom::All, Excuse::Stale, at(from));
        weather.end(ticket, at(until));
        weather
    }

    /// A query through proxy 0 that takes 1 ms, and what it is told.
    fn asked(sent: f64, told: Told) -> Asked {
        Asked {
            view: View { proxy: 0, table: 0 },
            sent: at(sent),
            answered: at(sent + 0.001),
            told,
        }
    }

    /// Judges answers in order; the first that is wrong ends it, by its number.
    fn first_wrong(
        history: &History,
        weather: &Weather,
        answers: &[Asked],
    ) -> Option<(usize, String)> {
        let mut checker = Checker::default();
        let verdict =
            |(number, asked)| Some((number, checker.check(history, weather, asked).err()?.why));
        answers.iter().enumerate().find_map(verdict)
    }

    /// All right but for the last, which is wrong for this reason; or all right.
    #[track_caller]
    fn judge(
        why: &str,
        history: &History,
        weather: &Weather,
        answers: &[Asked],
        want: Option<&str>,
    ) {
        match (first_wrong(history, weather, answers), want) {
            (None, None) => {}
            (Some((number, found)), Some(want)) => {
                assert!(found.contains(want), "{why}: {found}");
                assert_eq!(number, answers.len() - 1, "{why}: {found}");
            }
            (found, want) => panic!("{why}: want {want:?}, got {found:?}"),
        }
    }

    const A: Value = Value::Cluster(0);
    const B: Value = Value::Cluster(1);
    const C: Value = Value::Cluster(2);
    const NONE_EXPLAINS: Option<&str> = Some("no version that was current then");
    const WENT_BACK: Option<&str> = Some("older than what was seen before");

    #[test]
    fn in_calm_a_change_counts_after_the_bound() {
        let calm = Weather::new(BOUNDS);
        let history = history(&[(1.0, A), (5.0, B)]);
        for (why, sent, told, want) in [
            ("before it exists", 0.5, Unknown, None),
            ("just written", 1.05, Unknown, None),
            ("too late", 1.2, Unknown, NONE_EXPLAINS),
            ("the first", 2.0, Cluster(0), None),
            ("one that is not there yet", 2.0, Cluster(1), NONE_EXPLAINS),
            ("one that never was", 2.0, Cluster(2), NONE_EXPLAINS),
            ("new while it is written", 5.001, Cluster(1), None),
            ("old within the bound", 5.1, Cluster(0), None),
            ("old beyond the bound", 5.12, Cluster(0), NONE_EXPLAINS),
            ("new", 9.0, Cluster(1), None),
            ("good data is not unusable", 9.0, Unusable, NONE_EXPLAINS),
            ("what is there is not unknown", 9.0, Unknown, NONE_EXPLAINS),
            ("no reason to be unavailable", 9.0, Unavailable, Some("nothing was wrong")),
            ("an error of its own", 9.0, Told::Other("reset".into()), Some("no answer to accept")),
        ] {
            judge(why, &history, &calm, &[asked(sent, told)], want);
        }
    }

    #[test]
    fn a_query_under_way_during_a_change_may_be_told_either() {
        let calm = Weather::new(BOUNDS);
        let history = history(&[(1.0, A), (5.0, B)]);
        let slow = |told| Asked { answered: at(5.3), ..asked(4.9, told) };
        judge("old", &history, &calm, &[slow(Cluster(0))], None);
        judge("new", &history, &calm, &[slow(Cluster(1))], None);
        judge("never", &history, &calm, &[slow(Cluster(2))], NONE_EXPLAINS);
    }

    #[test]
    fn a_write_under_way_may_have_taken_effect_or_not() {
        let calm = Weather::new(BOUNDS);
        let mut history = history(&[(1.0, A)]);
        history.sent(B, at(5.0));
        judge("not", &history, &calm, &[asked(9.0, Cluster(0))], None);
        judge("yes", &history, &calm, &[asked(9.0, Cluster(1))], None);
        judge(
            "back",
            &history,
            &calm,
            &[asked(9.0, Cluster(1)), asked(9.1, Cluster(0))],
            WENT_BACK,
        );
    }

    #[test]
    fn trouble_excuses_old_answers_until_it_is_made_up_for() {
        let weather = trouble(5.0, 10.0);
        let history = history(&[(1.0, A), (6.0, B), (12.0, C), (20.0, A)]);
        for (why, sent, told, want) in [
            ("stale in trouble", 9.0, Cluster(0), None),
            ("current in trouble", 9.0, Cluster(1), None),
            ("stale while recovering", 15.9, Cluster(0), None),
            ("stale by one while recovering", 15.9, Cluster(1), None),
            ("stale after it", 16.1, Cluster(0), NONE_EXPLAINS),
            ("stale by one after it", 16.1, Cluster(1), NONE_EXPLAINS),
            ("current after it", 16.1, Cluster(2), None),
            ("unknown is not stale", 9.0, Unknown, NONE_EXPLAINS),
        ] {
            judge(why, &history, &weather, &[asked(sent, told)], want);
        }
    }

    #[test]
    fn nobody_sees_a_version_and_then_an_older_one() {
        let weather = trouble(5.0, 10.0);
        let history = history(&[(1.0, A), (6.0, B), (7.0, C), (8.0, A)]);
        let answers = |told: &[Told]| -> Vec<Asked> {
            told.iter()
                .zip(1..)
                .map(|(told, n)| asked(9.0 + 0.1 * f64::from(n), told.clone()))
                .collect()
        };
        for (why, told, want) in [
            ("forward", vec![Cluster(0), Cluster(1), Cluster(2), Cluster(0)], None),
            ("back", vec![Cluster(2), Cluster(1)], WENT_BACK),
            ("back to before it was there", vec![Cluster(1), Unknown], NONE_EXPLAINS),
            ("the same cluster again, later", vec![Cluster(1), Cluster(0)], None),
            ("then not back", vec![Cluster(1), Cluster(0), Cluster(2)], WENT_BACK),
        ] {
            judge(why, &history, &weather, &answers(&told), want);
        }
        let side_by_side = [asked(9.0, Cluster(2)), asked(9.0, Cluster(1))];
        judge("asked at the same time", &history, &weather, &side_by_side, None);
        let mut through_another = answers(&[Cluster(2), Cluster(1)]);
        through_another[1].view.proxy = 1;
        judge("through another proxy", &history, &weather, &through_another, None);
        let mut of_another = answers(&[Cluster(2), Cluster(1)]);
        of_another[1].view.table = 1;
        judge("of another table", &history, &weather, &of_another, None);
    }

    #[test]
    fn a_deletion_is_a_version_too() {
        let weather = trouble(5.0, 10.0);
        let history = history(&[(1.0, A), (6.0, Value::Absent), (8.0, B)]);
        let gone_and_back = [asked(9.0, Unknown), asked(9.1, Cluster(0))];
        judge("what was deleted comes back", &history, &weather, &gone_and_back, WENT_BACK);
        let gone_again = [asked(9.0, Cluster(1)), asked(9.1, Unknown)];
        judge("what was created is gone", &history, &weather, &gone_again, WENT_BACK);
    }

    #[test]
    fn junk_leaves_the_last_good_route() {
        let calm = Weather::new(BOUNDS);
        let junk = [(1.0, A), (3.0, B), (5.0, Value::Junk), (6.0, Value::Junk)];
        let history = history(&junk);
        for (why, answers, want) in [
            ("the last good", vec![asked(9.0, Cluster(1))], None),
            ("never cached", vec![asked(9.0, Unusable)], None),
            ("one before the last good", vec![asked(9.0, Cluster(0))], NONE_EXPLAINS),
            ("kept", vec![asked(4.0, Cluster(1)), asked(9.0, Cluster(1))], None),
            (
                "lost",
                vec![asked(4.0, Cluster(1)), asked(9.0, Unusable)],
                Some("the last good route is lost"),
            ),
            ("unusable before it was", vec![asked(4.0, Unusable)], NONE_EXPLAINS),
        ] {
            judge(why, &history, &calm, &answers, want);
        }
    }

    #[test]
    fn a_good_version_that_nobody_had_time_to_read_may_be_missed() {
        let calm = Weather::new(BOUNDS);
        let quick = history(&[(1.0, A), (3.0, B), (3.05, Value::Junk)]);
        judge("missed", &quick, &calm, &[asked(9.0, Cluster(0))], None);
        let slow = [(1.0, A), (3.0, B), (4.0, Value::Junk)];
        judge("not missed", &history(&slow), &calm, &[asked(9.0, Cluster(0))], NONE_EXPLAINS);
        judge(
            "missed in trouble",
            &history(&slow),
            &trouble(2.9, 5.0),
            &[asked(19.0, Cluster(0))],
            None,
        );
        let deleted = [(1.0, A), (3.0, Value::Absent), (4.0, Value::Junk)];
        judge("deleted", &history(&deleted), &calm, &[asked(9.0, Cluster(0))], NONE_EXPLAINS);
        judge(
            "its last good went with it",
            &history(&deleted),
            &calm,
            &[asked(2.0, Cluster(0)), asked(9.0, Unusable)],
            None,
        );
    }

    #[test]
    fn only_a_table_that_is_not_cached_may_be_unavailable() {
        let weather = trouble(5.0, 10.0);
        let steady = history(&[(1.0, A)]);
        judge("never asked for", &steady, &weather, &[asked(9.0, Unavailable)], None);
        let cached = [asked(4.0, Cluster(0)), asked(9.0, Unavailable)];
        judge("cached", &steady, &weather, &cached, Some("must be served whatever happens"));
        let late = [asked(15.9, Unavailable), asked(16.1, Unavailable)];
        judge("recovered", &steady, &weather, &late, Some("nothing was wrong"));
        let deleted = history(&[(1.0, A), (6.0, Value::Absent), (7.0, B)]);
        judge("deleted and created", &deleted, &weather, &cached, None);
        judge("unknown tables, too", &History::new(), &weather, &[asked(9.0, Unavailable)], None);
    }

    #[test]
    fn a_table_that_is_held_is_never_unknown_but_for_a_moment() {
        let steady = history(&[(1.0, A)]);
        let mut weather = trouble(5.0, 20.0);
        let ticket = weather.begin("deleted", Whom::All, Excuse::Gone, at(6.0));
        weather.end(ticket, at(7.0));
        let seen = || asked(4.0, Cluster(0));
        for moment in [Unknown, Unavailable] {
            judge("a moment", &steady, &weather, &[seen(), asked(6.5, moment)], None);
        }
        judge(
            "held",
            &steady,
            &weather,
            &[seen(), asked(6.5, Unknown), asked(9.0, Cluster(0))],
            None,
        );
        judge("believed", &steady, &weather, &[seen(), asked(9.0, Unknown)], NONE_EXPLAINS);
    }

    #[test]
    fn late_answers_are_wrong_unless_the_proxy_could_not_run() {
        let steady = history(&[(1.0, A)]);
        let late = Asked { answered: at(11.6), ..asked(10.0, Cluster(0)) };
        let calm = Weather::new(BOUNDS);
        judge("late", &steady, &calm, std::slice::from_ref(&late), Some("longer than 1.5s"));
        judge(
            "in trouble",
            &steady,
            &trouble(9.0, 12.0),
            std::slice::from_ref(&late),
            Some("longer than 1.5s"),
        );
        let mut frozen = Weather::new(BOUNDS);
        let ticket = frozen.begin("frozen", Whom::Proxy(0), Excuse::Mute, at(11.0));
        frozen.end(ticket, at(11.5));
        judge("frozen", &steady, &frozen, std::slice::from_ref(&late), None);
        let lost = Asked { told: Told::Other("silence".into()), ..late };
        judge("given up", &steady, &frozen, std::slice::from_ref(&lost), None);
        judge("given up in calm", &steady, &calm, &[lost], Some("longer than 1.5s"));
    }

    #[test]
    fn a_cached_table_does_not_wait_for_zookeeper() {
        let history = history(&[(1.0, A), (6.0, Value::Absent), (7.0, B)]);
        let slow =
            |sent, cluster| Asked { answered: at(sent + 0.6), ..asked(sent, Cluster(cluster)) };
        let weather = trouble(4.0, 20.0);
        let waited = Some("the table is cached, and it took");
        judge("the first time", &history, &weather, &[slow(5.0, 0)], None);
        judge("cached", &history, &weather, &[asked(3.0, Cluster(0)), slow(5.0, 0)], waited);
        judge("created anew", &history, &weather, &[asked(3.0, Cluster(0)), slow(9.0, 1)], None);
    }

    #[test]
    fn the_age_of_an_answer_is_told_and_whether_it_was_cached() {
        let calm = Weather::new(BOUNDS);
        let history = history(&[(1.0, A), (5.0, B), (9.0, Value::Absent)]);
        let mut checker = Checker::default();
        let mut right = |sent, told| {
            let Right { age, cached } =
                checker.check(&history, &calm, &asked(sent, told)).expect("allowed");
            (age, cached)
        };
        assert_eq!(right(4.0, Cluster(0)), (Duration::ZERO, false));
        assert_eq!(right(5.05, Cluster(0)), (at(5.05) - at(5.01), true));
        assert_eq!(right(6.0, Cluster(1)), (Duration::ZERO, true));
        assert_eq!(right(10.0, Unknown), (Duration::ZERO, false));
    }
}
