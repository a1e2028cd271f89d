//! Numbers of all rounds to tables: medians, ratios between targets, and the goals of the design beside them.
//!
//! A ratio is taken within each round, where both targets met the same weather; the median is that of the ratios.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::rows::Value;
use crate::tally::quantiles;
use crate::target::Kind;

/// The values of one round by row and name, each of every target that has it.
type Round = BTreeMap<(&'static str, &'static str), BTreeMap<Kind, f64>>;

/// All that was measured.
#[derive(Default)]
pub struct Results {
    rounds: Vec<Round>,
    failures: Vec<String>,
}

/// A line of the first table.
struct Line {
    title: &'static str,
    row: &'static str,
    value: &'static str,
    /// The ratio to this target is shown; without one, the value itself.
    against: Option<Kind>,
    goal: Option<Goal>,
}

/// The rows of the table of crowds.
const CROWDS: &[(&str, &str)] = &[
    ("crowd-mute", "8 mute clusters of 8 tables"),
    ("crowd-slow", "10 clusters of 8 tables that answer in 0.4 s"),
    ("crowd-dying", "100 clusters that die at once"),
    ("crowd-refusing", "1,000 clusters that refuse"),
    ("crowd-greedy", "1 greedy client"),
    ("crowd-greedy-host", "300 greedy clients of one host"),
    ("crowd-greedy-hosts", "300 greedy clients of 300 hosts"),
];
/// The wait of a client of a healthy cluster beside them, ms.
const CROWD_P99: Goal = Goal::AtMost(50.0);
const CROWD_WORST: Goal = Goal::AtMost(250.0);

#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// As in the table of the design, and some more.
const LINES: &[Line] = &[
    Line {
        title: "start to first answer, ms",
        row: "start",
        value: "ms",
        against: None,
        goal: None,
    },
    Line {
        title: "... resident memory then, bytes",
        row: "start",
        value: "rss_bytes",
        against: None,
        goal: None,
    },
    Line {
        title: "... size of the binary, bytes",
        row: "start",
        value: "binary_bytes",
        against: None,
        goal: None,
    },
    Line {
        title: "one client, p50, against direct",
        row: "one-client",
        value: "p50_us",
        against: Some(Kind::Direct),
        goal: Some(Goal::AtMost(1.3)),
    },
    Line {
        title: "... against HAProxy",
        row: "one-client",
        value: "p50_us",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtMost(0.6)),
    },
    Line {
        title: "64 clients, one table: queries/s against HAProxy",
        row: "clients",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.5)),
    },
    Line {
        title: "... CPU per query against HAProxy",
        row: "clients",
        value: "cpu_us",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtMost(0.6)),
    },
    Line {
        title: "64 clients over 10 tables: queries/s against HAProxy",
        row: "ten",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.3)),
    },
    Line {
        title: "... CPU per query against HAProxy",
        row: "ten",
        value: "cpu_us",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtMost(0.8)),
    },
    Line {
        title: "64 clients over 10 tables of 256 partitions: queries/s against HAProxy",
        row: "wide",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.5)),
    },
    Line {
        title: "... CPU per query against HAProxy",
        row: "wide",
        value: "cpu_us",
        against: Some(Kind::HaProxy),
        goal: None,
    },
    Line {
        title: "64 clients over 64 tables: queries/s against HAProxy",
        row: "spread",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.2)),
    },
    Line {
        title: "... CPU per query against HAProxy",
        row: "spread",
        value: "cpu_us",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtMost(0.85)),
    },
    Line {
        title: "pipelined 4 x 16, one table: queries/s against HAProxy",
        row: "pipelined",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.0)),
    },
    Line {
        title: "pipelined 4 x 16 over 10 tables: queries/s against HAProxy",
        row: "pipelined-ten",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.0)),
    },
    Line {
        title: "open loop, p99 against direct",
        row: "open-loop",
        value: "p99_us",
        against: Some(Kind::Direct),
        goal: Some(Goal::AtMost(2.4)),
    },
    Line {
        title: "herd, all clients ask at once: time against direct",
        row: "herd",
        value: "ms",
        against: Some(Kind::Direct),
        goal: Some(Goal::AtMost(1.2)),
    },
    Line {
        title: "... upstream calls",
        row: "herd",
        value: "upstream",
        against: None,
        goal: Some(Goal::AtMost(99.0)),
    },
    Line {
        title: "connect, ask once, close: connections/s against HAProxy",
        row: "churn",
        value: "rate",
        against: Some(Kind::HaProxy),
        goal: Some(Goal::AtLeast(1.5)),
    },
    Line {
        title: "memory per idle connection, bytes",
        row: "idle",
        value: "bytes",
        against: None,
        goal: Some(Goal::AtMost(350.0)),
    },
    Line {
        title: "... after one query over each",
        row: "idle",
        value: "bytes_asked",
        against: None,
        goal: Some(Goal::AtMost(512.0)),
    },
    Line {
        title: "znode changed to first answer from the new cluster, p50, ms",
        row: "switch",
        value: "p50_ms",
        against: None,
        goal: None,
    },
    Line {
        title: "... against the peer",
        row: "switch",
        value: "p50_ms",
        against: Some(Kind::Peer),
        goal: Some(Goal::AtMost(1.0)),
    },
    Line {
        title: "... p99 against the peer",
        row: "switch",
        value: "p99_ms",
        against: Some(Kind::Peer),
        goal: Some(Goal::AtMost(0.5)),
    },
    Line {
        title: "500 cold tables, tables/s",
        row: "cold",
        value: "tables_per_s",
        against: None,
        goal: Some(Goal::AtLeast(6000.0)),
    },
    Line {
        title: "unknown tables: ZooKeeper reads per query",
        row: "unknown",
        value: "zk_reads",
        against: None,
        goal: Some(Goal::AtMost(0.0)),
    },
    Line {
        title: "system calls per query, 64 clients",
        row: "syscalls",
        value: "per_query",
        against: None,
        goal: None,
    },
];

impl Goal {
    /// As shown: a number that rounds to the goal has reached it.
    fn is_reached(self, value: f64) -> bool {
        match self {
            Goal::AtMost(goal) => value <= goal + 0.005,
            Goal::AtLeast(goal) => value >= goal - 0.005,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(goal) => format!("≤ {}", number(goal)),
            Goal::AtLeast(goal) => format!("≥ {}", number(goal)),
        }
    }
}

impl Results {
    /// From here on, results are those of the next round.
    pub fn next_round(&mut self) {
        self.rounds.push(BTreeMap::new());
    }

    /// Takes what one measurement gave.
    pub fn add(&mut self, row: &'static str, kind: Kind, values: &[Value]) {
        if let Some(round) = self.rounds.last_mut() {
            for (name, value) in values {
                round.entry((row, name)).or_default().insert(kind, *value);
            }
        }
    }

    /// Takes why one measurement gave nothing.
    pub fn fail(&mut self, row: &str, kind: Kind, why: &str) {
        let round = self.rounds.len();
        self.failures.push(format!("{row}, {kind}, round {round}: {why}"));
    }

    /// The value of the first round that has one.
    pub fn first(&self, row: &'static str, value: &'static str, kind: Kind) -> Option<f64> {
        self.values(row, value, kind, None).first().copied()
    }

    /// The values of all rounds, or their ratios to those of another target.
    fn values(
        &self,
        row: &'static str,
        value: &'static str,
        kind: Kind,
        against: Option<Kind>,
    ) -> Vec<f64> {
        self.rounds
            .iter()
            .filter_map(|round| {
                let of = round.get(&(row, value))?;
                let own = of.get(&kind)?;
                match against {
                    Some(other) => Some(own / of.get(&other)?),
                    None => Some(*own),
                }
            })
            .filter(|value| value.is_finite())
            .collect()
    }

    /// The tables, for those targets.
    pub fn markdown(&self, kinds: &[Kind]) -> String {
        let mut text = String::new();
        let names: Vec<String> = kinds.iter().map(Kind::to_string).collect();
        let _ = writeln!(text, "| | {} | goal | reached |", names.join(" | "));
        let _ = writeln!(text, "|---|{}---|---|", "---:|".repeat(kinds.len()));
        for line in LINES {
            let cell = |kind: &Kind| {
                let found = middle(self.values(line.row, line.value, *kind, line.against));
                found.map(number).unwrap_or_default()
            };
            let cells: Vec<String> = kinds.iter().map(cell).collect();
            if cells.iter().all(String::is_empty) {
                continue;
            }
            let own = middle(self.values(line.row, line.value, Kind::MetaProxy, line.against));
            let (goal, reached) = match (line.goal, own) {
                (None, _) => (String::new(), ""),
                (Some(goal), None) => (goal.text(), ""),
                (Some(goal), Some(own)) if goal.is_reached(own) => (goal.text(), "yes"),
                (Some(goal), Some(_)) => (goal.text(), "no"),
            };
            let _ =
                writeln!(text, "| {} | {} | {goal} | {reached} |", line.title, cells.join(" | "));
        }
        text.push_str(&self.crowds());
        let _ =
            writeln!(text, "\nAll that was measured, median (least to greatest of all rounds):\n");
        let _ = writeln!(text, "| row | value | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|---|{}", "---:|".repeat(kinds.len()));
        let measured: BTreeSet<_> = self.rounds.iter().flat_map(BTreeMap::keys).copied().collect();
        for (row, value) in measured {
            let cell = |kind: &Kind| spread(self.values(row, value, *kind, None));
            let cells: Vec<String> = kinds.iter().map(cell).collect();
            let _ = writeln!(text, "| {row} | {value} | {} |", cells.join(" | "));
        }
        for failure in &self.failures {
            let _ = writeln!(text, "\nFailed: {failure}");
        }
        text
    }

    /// The table of how long clients of a healthy cluster wait beside others: medians of p50 and p99, and the worst of
    /// all rounds.
    fn crowds(&self) -> String {
        let mut text = String::new();
        for (row, title) in CROWDS {
            let values = |value| self.values(row, value, Kind::MetaProxy, None);
            let cells = |names: [&'static str; 5]| {
                let [p50, p99, worst, late_p99, late_worst] = names;
                let middles = [p50, p99].map(|name| middle(values(name)));
                let most = |name| values(name).into_iter().reduce(f64::max);
                let cells = [middles[0], middles[1], most(worst), middle(values(late_p99))];
                cells.into_iter().chain([most(late_worst)]).collect::<Option<Vec<f64>>>()
            };
            let with = ["p50_ms", "p99_ms", "worst_ms", "late_p99_ms", "late_worst_ms"];
            let without = [
                "without_p50_ms",
                "without_p99_ms",
                "without_worst_ms",
                "without_late_p99_ms",
                "without_late_worst_ms",
            ];
            let (Some(with), Some(without)) = (cells(with), cells(without)) else {
                continue;
            };
            if text.is_empty() {
                text.push_str(CROWDS_HEAD);
            }
            let is_reached = CROWD_P99.is_reached(with[1]) && CROWD_WORST.is_reached(with[2]);
            let reached = if is_reached { "yes" } else { "no" };
            let cells: Vec<String> = with.iter().chain(&without).map(|ms| number(*ms)).collect();
            let _ = writeln!(text, "| {title} | {} | {reached} |", cells.join(" | "));
        }
        text
    }
}

const CROWDS_HEAD: &str = "
How long a client of a healthy cluster waits beside others, ms. Late: the generator itself. Goal: p99 ≤ 50, worst ≤ 250.

| beside | p50 | p99 | worst | late p99 | late worst | without the fault: p50 | p99 | worst | late p99 | late worst | \
reached |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|
";

fn middle(mut values: Vec<f64>) -> Option<f64> {
    let [median] = quantiles(&mut values, [0.5]);
    Some(median).filter(|median| median.is_finite())
}

fn spread(mut values: Vec<f64>) -> String {
    let [least, median, greatest] = quantiles(&mut values, [0.0, 0.5, 1.0]);
    match values.len() {
        0 => String::new(),
        1 => number(median),
        _ => format!("{} ({} to {})", number(median), number(least), number(greatest)),
    }
}

/// Three digits that count, thousands apart.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size < 0.005 {
        "0".to_owned()
    } else if size < 100.0 {
        let text = if size < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        let digits = format!("{size:.0}");
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        if value < 0.0 { format!("-{text}") } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, want) in [
            (0.001, "0"),
            (1.0, "1"),
            (1.304, "1.3"),
            (0.16, "0.16"),
            (41.26, "41.3"),
            (99.0, "99"),
            (512.4, "512"),
            (9_900.0, "9,900"),
            (1_234_567.8, "1,234,568"),
            (-1_000.0, "-1,000"),
        ] {
            assert_eq!(number(value), want, "{value}");
        }
    }

    #[test]
    fn a_ratio_is_taken_within_its_round() {
        let mut results = Results::default();
        // The machine was twice as slow in the second round: the ratio is the same.
        for slow in [1.0, 2.0, 1.0] {
            results.next_round();
            results.add("one-client", Kind::Direct, &[("p50_us", 30.0 * slow)]);
            results.add("one-client", Kind::MetaProxy, &[("p50_us", 45.0 * slow)]);
        }
        results.fail("herd", Kind::MetaProxy, "out of descriptors");
        let text = results.markdown(&[Kind::Direct, Kind::MetaProxy]);
        let line = "| one client, p50, against direct | 1 | 1.5 | ≤ 1.3 | no |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| one-client | p50_us | 30 (30 to 60) | 45 (45 to 90) |"));
        assert!(text.contains("Failed: herd, meta-proxy, round 3: out of descriptors"), "{text}");
        assert!(!text.contains("herd, all clients"), "{text}");
    }
}
