use super::*;

/// A proxy in good order: two clusters, three tables.
pub fn sample() -> Overview {
    let cluster = |name: &str, net: u8, usual_us| Cluster {
        name: name.to_owned(),
        metas: (1..=3).map(|host| format!("10.{net}.0.{host}:34601")).collect(),
        tables: 2,
        leader: Some(format!("10.{net}.0.2:34601")),
        links: 2,
        calls: 1,
        waiting: 4,
        failing_s: None,
        failures: 0,
        meta_failures: Vec::new(),
        probes: Vec::new(),
        usual_us: Some(usual_us),
        answers_ok: 1_234_567,
        answers_other: 12,
        unanswered: 0,
    };
    let route = |table: &str, cluster: &Cluster, queries| Route {
        table: table.to_owned(),
        cluster: Some(cluster.name.clone()),
        fault: None,
        metas: cluster.metas.clone(),
        zxid: 0x5_0000_1234,
        written_s: None,
        age_s: 86_400 * 12,
        confirmed_age_s: Some(14),
        source: "zookeeper",
        stale: false,
        held: false,
        queries,
        reads: 3,
        error: None,
        error_s: None,
        error_queries: 0,
    };
    let (ad, ml) = (cluster("c3srv-ad", 1, 410), cluster("c4srv-ml", 2, 2_300));
    Overview {
        host: "proxy-07".to_owned(),
        version: "0.1.0",
        up_s: 3 * 86_400,
        life: Life::Serving,
        hold: None,
        zookeeper: Some(ZooKeeper {
            root: "/pegasus-cluster".to_owned(),
            root_czxid: None,
            root_ctime_ms: None,
            is_rootless: false,
            state: Trust::Confirmed,
            since_s: 86_400 * 3,
            server: Some("10.0.0.21:2181".to_owned()),
            session: None,
            asked_timeout_ms: 6_000,
            granted_timeout_ms: Some(6_000),
            rebuilds: 0,
            seen_zxid: 900_123,
            control: None,
            is_control_faulty: false,
            last_fault: None,
            cached: 3,
            unconfirmed: 0,
            capacity: 1_024,
            evicted: 0,
            evicted_s: None,
        }),
        routes: vec![
            route("orders", &ad, 900_123),
            route("users", &ad, 12),
            route("items", &ml, 7),
        ],
        clusters: vec![ad, ml],
        clients: Clients {
            connections: 9_871,
            pending: 3,
            unread_bytes: 0,
            queries: 1_234_579,
            queries_per_s: 412.34,
            errors_per_s: 0.0,
            latency_us: Some((200, 2_000)),
        },
        refused: Vec::new(),
        upkeep: Upkeep::default(),
    }
}

#[test]
fn what_is_wrong_is_said_the_worst_first() {
    let verdict = |change: &dyn Fn(&mut Overview)| {
        let mut overview = sample();
        change(&mut overview);
        overview.verdict()
    };
    let one = |level, headline: &str| Verdict {
        level,
        headline: headline.to_owned(),
        details: Vec::new(),
    };
    assert_eq!(verdict(&|_| ()), one(Level::Well, "All is well"));
    assert_eq!(
        verdict(&|overview| overview.life = Life::Draining),
        one(Level::Warning, "Draining: clients should use other proxies")
    );
    assert_eq!(
        verdict(&|overview| overview.routes[1].cluster = None),
        one(Level::Bad, "The record of table users cannot be used; clients get ERR_INVALID_DATA")
    );
    assert_eq!(
        verdict(&|overview| overview.routes[1].fault = Some("want a JSON object".to_owned())),
        one(
            Level::Warning,
            "The record of table users cannot be used: want a JSON object; the last good record \
             serves"
        )
    );
    let confirming = |since_s| {
        move |overview: &mut Overview| {
            let zookeeper = overview.zookeeper.as_mut().unwrap();
            (zookeeper.state, zookeeper.since_s, zookeeper.unconfirmed) =
                (Trust::Confirming, since_s, 1_200);
        }
    };
    assert_eq!(verdict(&confirming(CONFIRMING_S)), one(Level::Well, "All is well"));
    assert_eq!(
        verdict(&confirming(CONFIRMING_S + 1)),
        one(Level::Warning, "1,200 routes have waited for confirmation for 11 s")
    );
    assert_eq!(
        verdict(&|overview| overview.routes.clear()),
        one(Level::Well, "All is well"),
        "a proxy that nobody has asked yet"
    );

    let many = verdict(&|overview| {
        let zookeeper = overview.zookeeper.as_mut().unwrap();
        (zookeeper.state, zookeeper.since_s) = (Trust::Down, 200);
        let what = Refusable::Connection(Refusal::MaxPerAddress);
        overview.refused = vec![Refused { what, count: 1_234, last_s: 3 }];
        overview.upkeep.waiting_settings = vec!["workers".to_owned(), "listen".to_owned()];
        let failing = Cluster { failing_s: Some(40), failures: 17, ..overview.clusters[0].clone() };
        overview.clusters = vec![failing; 5];
    });
    assert_eq!(many.level, Level::Bad);
    assert_eq!(
        many.headline,
        "5 clusters do not answer: c3srv-ad (2 tables), c3srv-ad (2 tables), c3srv-ad \
         (2 tables) and 2 more"
    );
    assert_eq!(
        many.details,
        [
            "Clients are refused: limits.max_connections_per_address is reached, 1,234 times, \
             the last 3 s ago",
            "ZooKeeper is unreachable for 3 min: the proxy serves cached routes and sees no \
             changes",
            "Changed settings that wait for a restart: workers, listen",
        ]
    );
}

#[test]
fn what_was_refused_or_lost_is_news_for_a_while() {
    let query = |what, last_s| Refused { what: Refusable::Query(what), count: 2, last_s };
    let lost = |last_s| LostLines { lines: 7, why: "No space left".to_owned(), last_s };
    for (last_s, refused, lines) in [
        (
            NEWS_S - 1,
            "Queries are refused: limits.max_pending is reached, 2 times, the last 59 s ago",
            "Log lines are lost: No space left; 7 lines, the last 59 s ago",
        ),
        (NEWS_S, "All is well", "All is well"),
    ] {
        let mut overview = sample();
        overview.refused = vec![query(Shed::Pending, last_s)];
        assert_eq!(overview.verdict().headline, refused);
        overview.refused.clear();
        overview.upkeep.lost_lines = Some(lost(last_s));
        assert_eq!(overview.verdict().headline, lines);
    }
    let mut overview = sample();
    overview.upkeep = Upkeep {
        rejected_settings: Some(("mp.yaml: line 1: workers: want 4".to_owned(), 130)),
        state_file_fault: Some("Permission denied".to_owned()),
        falcon_fails: true,
        ..Upkeep::default()
    };
    let verdict = overview.verdict();
    assert_eq!(
        (verdict.level, verdict.headline.as_str()),
        (Level::Warning, "SIGHUP changed nothing, 2 min ago: mp.yaml: line 1: workers: want 4")
    );
    assert_eq!(
        verdict.details,
        [
            "The state file cannot be written: Permission denied",
            "The falcon agent takes no metrics"
        ]
    );
}

#[test]
fn a_cluster_is_said_to_fail_with_its_reason_and_a_server_beside_it() {
    let failure = |host: u8, kind, last_s| MetaFailure {
        meta: format!("10.1.0.{host}:34601"),
        kind,
        count: 9,
        last_s,
    };
    let mut overview = sample();
    overview.clusters[0].meta_failures = vec![
        failure(1, "refused", 90),
        failure(1, "timeout", 12),
        failure(2, "timeout", 1),
        failure(3, "timeout", 8),
        failure(3, "closed", 5),
    ];
    assert_eq!(
        overview.verdict().headline,
        "2 MetaServers gave no usable answer: 10.1.0.3:34601, 10.1.0.1:34601",
        "the second leads now"
    );
    overview.clusters[0].leader = None;
    overview.clusters[0].failing_s = Some(40);
    overview.clusters[0].failures = 17;
    overview.clusters[0].meta_failures[0].last_s = NEWS_S + 40;
    let verdict = overview.verdict();
    assert_eq!(
        verdict.headline,
        "Cluster c3srv-ad does not answer: 17 failures in 40 s, 2 tables affected; \
         10.1.0.2:34601 timeout, 10.1.0.3:34601 closed, 10.1.0.1:34601 timeout"
    );
    assert_eq!(verdict.details, [""; 0]);
    let mut overview = sample();
    overview.clusters[1].meta_failures = vec![failure(3, "refused", 12)];
    assert_eq!(
        overview.verdict().headline,
        "MetaServer 10.1.0.3:34601 of c4srv-ml gave no usable answer: refused, 12 s ago"
    );
    overview.clusters[1].meta_failures[0].last_s = NEWS_S;
    assert_eq!(overview.verdict().level, Level::Well);
}

#[test]
fn a_table_that_its_cluster_does_not_have_is_never_green() {
    let mut overview = sample();
    let refuse = |route: &mut Route, error, last_s| {
        (route.error, route.error_s, route.error_queries) = (Some(error), Some(last_s), 5);
    };
    refuse(&mut overview.routes[0], ERR_OBJECT_NOT_FOUND, 3);
    let verdict = overview.verdict();
    assert_eq!(verdict.level, Level::Bad);
    assert_eq!(
        verdict.headline,
        "Cluster c3srv-ad does not have table orders: 5 queries answered ERR_OBJECT_NOT_FOUND, \
         the last 3 s ago; is its route right?"
    );
    refuse(&mut overview.routes[2], ERR_OBJECT_NOT_FOUND, MISSING_S - 1);
    assert_eq!(
        overview.verdict().headline,
        "2 tables are not in the cluster of their route: orders (c3srv-ad), items (c4srv-ml)"
    );
    refuse(&mut overview.routes[0], "ERR_BUSY_CREATING", NEWS_S - 1);
    refuse(&mut overview.routes[2], ERR_OBJECT_NOT_FOUND, MISSING_S);
    let verdict = overview.verdict();
    assert_eq!(
        (verdict.level, verdict.headline.as_str()),
        (
            Level::Warning,
            "The cluster of a table answers with an error: orders (ERR_BUSY_CREATING)"
        )
    );
    refuse(&mut overview.routes[0], "ERR_BUSY_CREATING", NEWS_S);
    assert_eq!(overview.verdict().level, Level::Well);
}

#[test]
fn a_cache_that_overflows_is_told_while_it_does() {
    let mut overview = sample();
    let zookeeper = overview.zookeeper.as_mut().unwrap();
    (zookeeper.evicted, zookeeper.evicted_s) = (4_096, Some(NEWS_S - 1));
    let verdict = overview.verdict();
    assert_eq!(
        (verdict.level, verdict.headline.as_str()),
        (
            Level::Warning,
            "The cache is too small: zookeeper.table_watcher_cache_capacity is 1,024, and \
             4,096 tables were evicted, the last 59 s ago; queries for them wait for ZooKeeper"
        )
    );
    overview.zookeeper.as_mut().unwrap().evicted_s = Some(NEWS_S);
    assert_eq!(overview.verdict().level, Level::Well);
}

#[test]
fn a_name_for_two_sets_and_a_set_with_two_names_are_told() {
    let mut overview = sample();
    overview.routes[1].metas = vec!["10.9.0.1:34601".to_owned()];
    overview.routes[2].metas = overview.routes[0].metas.clone();
    let verdict = overview.verdict();
    assert_eq!(verdict.level, Level::Warning);
    assert_eq!(
        verdict.headline,
        "Cluster c3srv-ad has 2 different sets of MetaServers: \
         10.1.0.1:34601 10.1.0.2:34601 10.1.0.3:34601, 10.9.0.1:34601"
    );
    assert_eq!(verdict.details, ["One set of MetaServers has 2 names: c3srv-ad, c4srv-ml"]);
}
