//! Troubles of ZooKeeper, the network and the proxies, and when they were: they excuse an old answer. Pure.
//!
//! ```text
//! trouble:        from ─────── until ── + recovery ──┐
//!         calm      │ stale answers are excused      │ calm
//! ────────────────▶ as far back as just before `from` ─────▶
//! ```
//! A trouble that begins before the one before it is made up for goes back as far as that one.

use std::time::Duration;

use crate::history::Time;

/// How old an answer may be, and how late.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In calm a change is known after this time.
    pub calm: Duration,
    /// All changes are known so long after a trouble ends.
    pub recovery: Duration,
    /// A query has its answer after this time.
    pub answer: Duration,
    /// One about a table that is cached for certain has it after this time: it waits for no ZooKeeper. That would take the
    /// better part of `answer`; a machine that stands still for a moment must not look like it.
    pub cached: Duration,
}

impl Bounds {
    /// The promises of a proxy.
    pub const PROMISED: Bounds = Bounds {
        calm: Duration::from_millis(100),
        recovery: Duration::from_secs(6),
        answer: Duration::from_millis(1_500),
        cached: Duration::from_millis(500),
    };

    /// With so much granted to the machine on top of each.
    pub fn with_slack(self, slack: Duration) -> Self {
        Bounds {
            calm: self.calm + slack,
            recovery: self.recovery + slack,
            answer: self.answer + slack,
            cached: self.cached + slack,
        }
    }
}

/// The answers that a trouble excuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// Not knowing any change, until the recovery is over.
    Stale,
    /// Knowing a change so much later.
    Late(Duration),
    /// Not answering while it lasts.
    Mute,
    /// Taking tables for gone while it lasts.
    Gone,
}

/// One table as one proxy has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The proxy's number.
    pub proxy: usize,
    /// The table's number.
    pub table: usize,
}

/// The proxies and tables that suffer a trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// All proxies.
    All,
    /// This one.
    Proxy(usize),
    /// All proxies, but only these tables.
    Tables(Vec<usize>),
}

/// Something that is wrong for a while.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// For people.
    pub what: String,
    /// Those that suffer it.
    pub whom: Whom,
    /// The answers that it excuses.
    pub excuse: Excuse,
    /// Its begin.
    pub from: Time,
    /// Its end, `None` while it lasts.
    pub until: Option<Time>,
}

impl Trouble {
    fn concerns(&self, view: View) -> bool {
        match &self.whom {
            Whom::All => true,
            Whom::Proxy(proxy) => *proxy == view.proxy,
            Whom::Tables(tables) => tables.contains(&view.table),
        }
    }

    /// Whether it excuses something at a moment of this time, its end being made up for `tail` later.
    fn overlaps(&self, from: Time, to: Time, tail: Duration) -> bool {
        self.from <= to && self.until.is_none_or(|until| from <= until + tail)
    }
}

/// All that was wrong so far.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The bounds that hold.
    pub bounds: Bounds,
    troubles: Vec<Trouble>,
}

/// Names a trouble that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(usize);

impl Weather {
    /// Nothing wrong yet.
    pub fn new(bounds: Bounds) -> Self {
        Weather { bounds, troubles: Vec::new() }
    }

    /// A trouble begins.
    pub fn begin(&mut self, what: &str, whom: Whom, excuse: Excuse, now: Time) -> Ticket {
        self.troubles.push(Trouble { what: what.to_owned(), whom, excuse, from: now, until: None });
        Ticket(self.troubles.len() - 1)
    }

    /// It ends.
    pub fn end(&mut self, ticket: Ticket, now: Time) {
        self.troubles[ticket.0].until = Some(now);
    }

    /// A query sent at this moment must know of all that was written before the time that this returns.
    pub fn fresh_since(&self, view: View, sent: Time) -> Time {
        // Only earlier troubles are looked at behind a trouble, so that this ends.
        self.fresh_since_among(self.troubles.len(), view, sent)
    }

    fn fresh_since_among(&self, count: usize, view: View, at: Time) -> Time {
        let calm = at.saturating_sub(self.bounds.calm);
        let since = |(index, trouble): (usize, &Trouble)| match trouble.excuse {
            Excuse::Stale if trouble.overlaps(at, at, self.bounds.recovery) => {
                self.fresh_since_among(index, view, trouble.from)
            }
            Excuse::Late(by) if trouble.overlaps(at, at, by) => calm.saturating_sub(by),
            _ => calm,
        };
        let concerning =
            self.troubles[..count].iter().enumerate().filter(|(_, trouble)| trouble.concerns(view));
        concerning.map(since).min().unwrap_or(calm).min(calm)
    }

    /// Whether ZooKeeper may have been out of this proxy's reach at a moment of this time.
    pub fn is_calm(&self, view: View, from: Time, to: Time) -> bool {
        !self.troubles.iter().any(|trouble| {
            trouble.excuse == Excuse::Stale
                && trouble.concerns(view)
                && trouble.overlaps(from, to, self.bounds.recovery)
        })
    }

    /// Whether the proxy could not run at some moment of this time.
    pub fn is_mute(&self, view: View, from: Time, to: Time) -> bool {
        self.troubles.iter().any(|trouble| {
            trouble.excuse == Excuse::Mute
                && trouble.concerns(view)
                && trouble.overlaps(from, to, Duration::ZERO)
        })
    }

    /// Whether tables may be taken for gone at a moment of this time.
    pub fn is_gone(&self, view: View, from: Time, to: Time) -> bool {
        self.troubles.iter().any(|trouble| {
            trouble.excuse == Excuse::Gone
                && trouble.concerns(view)
                && trouble.overlaps(from, to, Duration::ZERO)
        })
    }

    /// When the last trouble ended that made ZooKeeper or a proxy unreachable; `None` while one lasts.
    pub fn calm_since(&self) -> Option<Time> {
        let stale = self.troubles.iter().filter(|trouble| trouble.excuse == Excuse::Stale);
        stale
            .map(|trouble| trouble.until)
            .try_fold(Time::ZERO, |last, until| Some(last.max(until?)))
    }

    /// Troubles that were there in this time, for people.
    pub fn around(&self, from: Time, to: Time) -> Vec<&Trouble> {
        let near = |trouble: &&Trouble| trouble.overlaps(from, to, self.bounds.recovery);
        self.troubles.iter().filter(near).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds::PROMISED;

    fn at(seconds: f64) -> Time {
        Time::from_secs_f64(seconds)
    }

    fn view(proxy: usize) -> View {
        View { proxy, table: 3 }
    }

    #[test]
    fn a_trouble_excuses_until_it_is_made_up_for() {
        let mut weather = Weather::new(BOUNDS);
        let ticket = weather.begin("cut", Whom::All, Excuse::Stale, at(10.0));
        assert_eq!(weather.fresh_since(view(0), at(99.0)), at(9.9), "it lasts");
        assert_eq!(weather.calm_since(), None);
        weather.end(ticket, at(12.0));
        for (why, sent, want) in [
            ("before", 9.0, 8.9),
            ("while it lasts", 11.0, 9.9),
            ("recovering", 17.9, 9.9),
            ("recovered", 18.1, 18.0),
        ] {
            assert_eq!(weather.fresh_since(view(0), at(sent)), at(want), "{why}");
        }
        assert!(weather.is_calm(view(0), at(8.0), at(9.9)));
        assert!(!weather.is_calm(view(0), at(8.0), at(10.1)));
        assert!(!weather.is_calm(view(0), at(18.0), at(19.0)));
        assert!(weather.is_calm(view(0), at(18.1), at(19.0)));
        assert_eq!(weather.calm_since(), Some(at(12.0)));
    }

    #[test]
    fn one_trouble_upon_another_goes_back_to_the_first() {
        let mut weather = Weather::new(BOUNDS);
        for (from, until) in [(10.0, 11.0), (15.0, 16.0), (23.0, 24.0)] {
            let ticket = weather.begin("cut", Whom::All, Excuse::Stale, at(from));
            weather.end(ticket, at(until));
        }
        assert_eq!(weather.fresh_since(view(0), at(21.0)), at(9.9));
        assert_eq!(weather.fresh_since(view(0), at(25.0)), at(22.9), "calm was between");
    }

    #[test]
    fn others_troubles_and_other_troubles_excuse_nothing() {
        let mut weather = Weather::new(BOUNDS);
        let ticket = weather.begin("frozen", Whom::Proxy(1), Excuse::Stale, at(10.0));
        weather.end(ticket, at(12.0));
        let ticket = weather.begin("frozen", Whom::Proxy(1), Excuse::Mute, at(10.0));
        weather.end(ticket, at(12.0));
        assert_eq!(weather.fresh_since(view(0), at(11.0)), at(10.9));
        assert_eq!(weather.fresh_since(view(1), at(11.0)), at(9.9));
        assert!(
            weather.is_mute(view(1), at(9.0), at(10.5))
                && !weather.is_mute(view(0), at(9.0), at(10.5))
        );
        assert!(!weather.is_mute(view(1), at(12.1), at(13.0)), "nothing to recover from");
    }

    #[test]
    fn late_is_late_by_so_much_and_no_trouble() {
        let mut weather = Weather::new(BOUNDS);
        let ticket = weather.begin("slow", Whom::All, Excuse::Late(at(0.5)), at(10.0));
        weather.end(ticket, at(12.0));
        assert_eq!(weather.fresh_since(view(0), at(11.0)), at(10.4));
        assert_eq!(weather.fresh_since(view(0), at(12.4)), at(11.8));
        assert_eq!(weather.fresh_since(view(0), at(12.6)), at(12.5));
        assert!(weather.is_calm(view(0), at(10.0), at(12.0)));
    }

    #[test]
    fn a_trouble_of_some_tables_is_none_of_others() {
        let mut weather = Weather::new(BOUNDS);
        weather.begin("hidden", Whom::Tables(vec![3, 5]), Excuse::Late(at(2.0)), at(10.0));
        assert_eq!(weather.fresh_since(View { proxy: 0, table: 3 }, at(13.0)), at(10.9));
        assert_eq!(weather.fresh_since(View { proxy: 0, table: 4 }, at(13.0)), at(12.9));
    }
}
