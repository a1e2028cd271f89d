//! The rules that a change of routes must keep. Pure: what was seen comes in, what is refused comes out.
//!
//! | rule | refuses | set aside by |
//! |---|---|---|
//! | split brain | a table leaves a cluster whose leader answers and has it, unless the new addresses lead to the same cluster | `--split-brain-accepted` |
//! | target | the new cluster's leader does not answer, does not have the table, or denies its clients | `--target-accepted` |
//! | name | the new cluster calls itself otherwise than the route does | `--other-name` |
//! | partition count | the table has another partition count there | `--other-partition-count` |
//! | one address | a record with one address, which the Go proxy cannot use | `--not-for-go` |
//! | moving | `route move` is at work on the table | `--moving-accepted` |

use super::plan::Accepted;
use super::record::Place;
use super::view::{Leader, View, Views, is_same_cluster};
use crate::ops::admin_rpc::App;

/// A table whose route changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub table: String,
    /// `None`: it has no route that can be used.
    pub old: Option<Place>,
    /// `None`: the route is deleted.
    pub new: Option<Place>,
    /// The addresses stand in the cluster's own znode.
    pub names_cluster: bool,
    /// The table's znode is written while a move of the table did not end.
    pub is_moving: bool,
}

/// One rule refuses the move of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub rule: Accepted,
    pub table: String,
    pub why: String,
}

/// The option that sets a rule aside.
pub fn option(rule: Accepted) -> &'static str {
    match rule {
        Accepted::SplitBrain => "split-brain-accepted",
        Accepted::Target => "target-accepted",
        Accepted::OtherName => "other-name",
        Accepted::OtherPartitionCount => "other-partition-count",
        Accepted::NotForGo => "not-for-go",
        Accepted::Moving => "moving-accepted",
    }
}

/// All rules.
pub const RULES: [Accepted; 6] = [
    Accepted::SplitBrain,
    Accepted::Target,
    Accepted::OtherName,
    Accepted::OtherPartitionCount,
    Accepted::NotForGo,
    Accepted::Moving,
];

/// Returns what the rules refuse. Rules in `accepted` are set aside.
pub fn refusals(moves: &[Move], views: &Views, accepted: &[Accepted]) -> Vec<Refusal> {
    let mut refused = Vec::new();
    for each in moves {
        let mut refuse = |rule: Accepted, why: String| {
            if !accepted.contains(&rule) {
                refused.push(Refusal { rule, table: each.table.clone(), why });
            }
        };
        if each.is_moving {
            let why =
                "a move of it did not end: route move TABLE --back takes it back first".to_owned();
            refuse(Accepted::Moving, why);
        }
        let Some(new) = &each.new else { continue };
        let was_one = each.old.as_ref().is_some_and(|old| old.metas.len() == 1);
        if new.metas.len() == 1 && !was_one && !each.names_cluster {
            let why = format!("{} is one address: the Go proxy wants two or more", new.metas[0]);
            refuse(Accepted::NotForGo, why);
        }
        let old = each.old.as_ref().filter(|old| *old != new);
        let old = old.and_then(|old| Some((old, leader(views, old)?)));
        let old_app = old.and_then(|(_, leader)| leader.apps.get(&each.table));
        let (view, target) = (views.get(&new.metas), leader(views, new));
        let is_same =
            old.zip(target).is_some_and(|((_, leader), target)| is_same_cluster(leader, target));
        if let (Some((place, leader)), Some(_), false) = (old, old_app, is_same) {
            let why = format!(
                "the leader of {} answers at {} and has the table: clients that have its addresses go on \
                 writing there",
                place.cluster, leader.addr
            );
            refuse(Accepted::SplitBrain, why);
        }
        match target {
            None => refuse(Accepted::Target, no_leader(new, view)),
            Some(leader) => {
                if let Some(name) = leader.name.as_ref().filter(|name| **name != new.cluster) {
                    let why = format!("the route says {}, the cluster says {name}", new.cluster);
                    refuse(Accepted::OtherName, why);
                }
                check_app(leader, &each.table, old_app, &mut refuse, new);
            }
        }
    }
    refused
}

fn check_app(
    leader: &Leader,
    table: &str,
    old: Option<&App>,
    refuse: &mut impl FnMut(Accepted, String),
    new: &Place,
) {
    let Some(app) = leader.apps.get(table) else {
        let why = format!("{} does not have the table (its leader {})", new.cluster, leader.addr);
        return refuse(Accepted::Target, why);
    };
    if let Some(value) = app.denies() {
        let why = format!("{} denies clients of the table: {value}", new.cluster);
        refuse(Accepted::Target, why);
    }
    if let Some(old) = old.filter(|old| old.partition_count != app.partition_count) {
        let why = format!(
            "it has {} partitions, and {} in {}",
            old.partition_count, app.partition_count, new.cluster
        );
        refuse(Accepted::OtherPartitionCount, why);
    }
}

fn no_leader(place: &Place, view: Option<&View>) -> String {
    let why = view.map_or_else(|| "it was not asked".to_owned(), View::why_no_leader);
    format!("no leader of {} answers: {why}", place.cluster)
}

fn leader<'a>(views: &'a Views, place: &Place) -> Option<&'a Leader> {
    views.get(&place.metas)?.leader.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::view::ServerReply;
    use std::collections::BTreeMap;

    fn place(cluster: &str, port: u16) -> Place {
        Place { cluster: cluster.into(), metas: metas(port) }
    }

    fn metas(port: u16) -> Vec<String> {
        vec![format!("a:{port}"), format!("b:{port}")]
    }

    fn view(name: &str, root: &str, partition_count: i32, deny: Option<&str>) -> View {
        let envs: BTreeMap<String, String> = deny
            .map(|value| ("replica.deny_client_request".into(), value.into()))
            .into_iter()
            .collect();
        let app = App { name: "t".into(), partition_count, envs, ..App::default() };
        let leader = Leader {
            addr: "127.0.0.1:1".parse().unwrap(),
            name: Some(name.into()),
            zookeeper_root: Some(root.into()),
            apps: [("t".to_owned(), app)].into(),
        };
        View { servers: Vec::new(), leader: Some(leader) }
    }

    fn dead() -> View {
        View { servers: vec![("a:1".into(), ServerReply::Nothing("refused".into()))], leader: None }
    }

    #[test]
    fn each_rule_refuses_what_it_is_for() {
        use Accepted::*;
        let without = |mut view: View| {
            view.leader.as_mut().unwrap().apps.clear();
            view
        };
        for (why, old, new, want) in [
            ("the old one is gone", dead(), view("c4", "/4", 8, None), vec![]),
            (
                "the old one lives",
                view("c3", "/3", 8, None),
                view("c4", "/4", 8, None),
                vec![SplitBrain],
            ),
            (
                "it lives without the table",
                without(view("c3", "/3", 8, None)),
                view("c4", "/4", 8, None),
                vec![],
            ),
            (
                "one cluster by other addresses",
                view("c4", "/4", 8, None),
                view("c4", "/4", 8, None),
                vec![],
            ),
            (
                "two of one name",
                view("c4", "/3", 8, None),
                view("c4", "/4", 8, None),
                vec![SplitBrain],
            ),
            ("nobody there", dead(), dead(), vec![Target]),
            ("no such table there", dead(), without(view("c4", "/4", 8, None)), vec![Target]),
            ("denied there", dead(), view("c4", "/4", 8, Some("reconfig*all")), vec![Target]),
            ("another name", dead(), view("c5", "/4", 8, None), vec![OtherName]),
            (
                "other partitions",
                view("c3", "/3", 4, None),
                view("c4", "/4", 8, None),
                vec![SplitBrain, OtherPartitionCount],
            ),
        ] {
            let views: Views = [(metas(3), old), (metas(4), new)].into();
            let each = Move {
                table: "t".into(),
                old: Some(place("c3", 3)),
                new: Some(place("c4", 4)),
                names_cluster: false,
                is_moving: false,
            };
            let moves = [each];
            let rules = |accepted: &[Accepted]| -> Vec<Accepted> {
                refusals(&moves, &views, accepted).iter().map(|refusal| refusal.rule).collect()
            };
            assert_eq!(rules(&[]), want, "{why}");
            assert_eq!(rules(&RULES), [], "{why}");
            for rule in &want {
                assert!(!rules(&[*rule]).contains(rule), "{why}: {rule:?}");
            }
        }
    }

    #[test]
    fn one_address_is_not_for_the_go_proxy_unless_the_cluster_has_its_own_znode() {
        let one = Place { cluster: "c4".into(), metas: vec!["a:4".into()] };
        let views: Views = [(one.metas.clone(), view("c4", "/4", 8, None))].into();
        let mut each = Move {
            table: "t".into(),
            old: None,
            new: Some(one),
            names_cluster: false,
            is_moving: false,
        };
        let refused = refusals(&[each.clone()], &views, &[]);
        assert_eq!(refused[0].rule, Accepted::NotForGo);
        each.names_cluster = true;
        assert_eq!(refusals(&[each.clone()], &views, &[]), []);
        each.new = None;
        assert_eq!(refusals(&[each.clone()], &views, &[]), [], "a route that goes");
        each.is_moving = true;
        assert_eq!(refusals(&[each.clone()], &views, &[])[0].rule, Accepted::Moving);
        assert_eq!(refusals(&[each], &views, &[Accepted::Moving]), []);
    }
}
