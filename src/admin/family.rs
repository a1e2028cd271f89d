//! Metrics as values: `metrics` gathers them, `exposition` and `falcon` print them. Pure.

/// A metric: its name, and a number for each set of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// The name of a counter, without `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    /// A counter of the Go meta-proxy: dashboards and alerts use its name without `_total`.
    GoCounter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Labels,
    pub value: Value,
}

pub type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Number(f64),
    Histogram(Histogram),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub sum: f64,
    /// Upper bound, and the number of values in this bucket alone; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl Histogram {
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, n)| n).sum()
    }
}

/// One label.
pub fn label(name: &'static str, value: impl Into<String>) -> Labels {
    vec![(name, value.into())]
}

/// A list of families that grows.
#[derive(Debug, Default)]
pub struct Families(pub Vec<Family>);

impl Families {
    fn add(&mut self, name: &'static str, help: &'static str, kind: Kind, samples: Vec<Sample>) {
        self.0.push(Family { name, help, kind, samples });
    }

    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counters(name, help, [(Labels::new(), value)]);
    }

    pub fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.add(name, help, Kind::Counter, whole_numbers(values));
    }

    pub fn go_counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        self.add(name, help, Kind::GoCounter, whole_numbers(values));
    }

    /// A counter with a fraction.
    pub fn counter_of(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.add(name, help, Kind::Counter, numbers([(Labels::new(), value)]));
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauges(name, help, [(Labels::new(), value)]);
    }

    /// A gauge that is 1 for yes and 0 for no.
    pub fn flag(&mut self, name: &'static str, help: &'static str, value: bool) {
        self.gauge(name, help, f64::from(u8::from(value)));
    }

    pub fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        self.add(name, help, Kind::Gauge, numbers(values));
    }

    pub fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, Histogram)>,
    ) {
        let values = values.into_iter();
        let sample = |(labels, histogram)| Sample { labels, value: Value::Histogram(histogram) };
        self.add(name, help, Kind::Histogram, values.map(sample).collect());
    }
}

fn numbers(values: impl IntoIterator<Item = (Labels, f64)>) -> Vec<Sample> {
    let sample = |(labels, number)| Sample { labels, value: Value::Number(number) };
    values.into_iter().map(sample).collect()
}

fn whole_numbers(values: impl IntoIterator<Item = (Labels, u64)>) -> Vec<Sample> {
    numbers(values.into_iter().map(|(labels, number)| (labels, number as f64)))
}
