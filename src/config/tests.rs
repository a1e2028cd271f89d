use super::*;
use crate::wire::host_port::HostPortFields;

/// The example of the Go meta-proxy, letter by letter.
const GO: &str = "\
zookeeper:
  address: [127.0.0.1:22181,127.0.0.2:22181]
  root: /pegasus-cluster
  timeout: 1000 # ms
  table_watcher_cache_capacity: 1024

metric:
  type: falcon
  tags: [region=local_tst,service=meta_proxy]
";

fn lines(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(Fault::to_string).collect()
}

#[test]
fn the_go_proxys_file_works_as_it_is() {
    let checked = parse(GO, true);
    assert_eq!(checked.warnings, []);
    let settings = checked.settings.unwrap();
    let want = ZooKeeperSettings {
        address: vec!["127.0.0.1:22181".into(), "127.0.0.2:22181".into()],
        root: "/pegasus-cluster".into(),
        timeout: Duration::from_secs(1),
        cache_capacity: 1024,
        digest: None,
        clusters_root: None,
        control_root: None,
        control_digest: None,
        preload: false,
        hold: true,
        state_file: None,
    };
    assert_eq!(settings.zookeeper, Some(want.clone()));
    assert_eq!(settings.listen.to_string(), "0.0.0.0:34601");
    let loose = GO
        .replace("[127.0.0.1:22181,127.0.0.2:22181]", "127.0.0.1:22181,127.0.0.2:22181")
        .replace("timeout: 1000", "Timeout: '1000'");
    assert_eq!(parse(&loose, true).settings.unwrap().zookeeper, Some(want));
}

#[test]
fn all_faults_at_once_with_line_key_wanted_and_found() {
    let text = "\
listen: here
worker: 9
zookeeper:
  address: [zk1]
  timeout: 0
  extra: 1
metric: {type: statsd, tags: [region]}
limits:
  max_frame_bytes: many
";
    let checked = parse(text, true);
    assert_eq!(
        lines(&checked.settings.unwrap_err()),
        [
            r#"line 1: listen: want IP:port, got "here""#,
            r#"line 4: zookeeper.address: want a list of host:port, got ["zk1"]"#,
            r#"line 5: zookeeper.timeout: want 100..=600000, got "0""#,
            r#"line 7: metric.type: want prometheus or falcon, got "statsd""#,
            r#"line 7: metric.tags: want name=value, got "region""#,
            r#"line 9: limits.max_frame_bytes: want 512..=1048576, got "many""#,
            "zookeeper.root: want a znode path, /a/b, got nothing",
        ]
    );
    assert_eq!(
        lines(&checked.warnings),
        [
            "line 2: worker: unknown key; did you mean workers?",
            "line 6: zookeeper.extra: unknown key",
        ]
    );
}

#[test]
fn files_that_are_no_settings() {
    for (why, text, want) in [
        ("a list", "- 1", "want keys and values, got [\"1\"]"),
        ("a word", "hello", "want keys and values, got \"hello\""),
        ("broken", "a: [1", "line "),
        ("a key twice", "workers: 8\nworkers: 9\n", "line 2: workers: duplicate key, see line 1"),
        (
            "in another case",
            "workers: 8\nWorkers: 9\n",
            "line 2: Workers: duplicate key, see line 1",
        ),
        ("a section twice", "log: {}\nstop: {}\nlog:\n", "line 3: log: duplicate key, see line 1"),
        ("a section that is none", "limits: 7", "limits: want keys and values, got \"7\""),
    ] {
        let faults = parse(text, false).settings.unwrap_err();
        assert!(faults[0].to_string().contains(want), "{why}: {}", faults[0]);
    }
    // Faults for operators have no advice for users of the YAML library.
    for text in ["a: [1", "a: 1\n b: 2", "%YAML", "a: *b", "\t- a", "--- a\n--- b"] {
        let fault = parse(text, false).settings.unwrap_err()[0].to_string();
        for word in ["Options", "Policy", "serde", "from_", "::", "deserial"] {
            assert!(!fault.contains(word), "{text:?}: {fault}");
        }
    }
    assert!(parse("", false).settings.is_ok(), "all has defaults but ZooKeeper");
    let faults = parse("", true).settings.unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn what_has_changed_is_told_by_key_and_secrets_are_not() {
    let values = |text: &str| parse(text, true).settings.unwrap().values;
    let zk = "zookeeper: {address: [h:1], root: /r, digest: 'u:old'}\n";
    let old = values(zk);
    let spelled = format!("{zk}workers: '64'\nmetric: {{type: prometheus}}\n");
    assert_eq!(old.changes(&values(&spelled)), [], "the defaults, spelled out");
    let mut new = values(
        "zookeeper: {address: [h:1], root: /s, digest: 'u:new', clusters_root: /c}\n\
         query_timeout_ms: 900\nlog: {format: json}\n",
    );
    let shown: Vec<_> = old.changes(&new).iter().map(Change::to_string).collect();
    assert_eq!(
        shown,
        [
            r#"log.format: "text" -> "json""#,
            "query_timeout_ms: 1500 -> 900",
            r#"zookeeper.clusters_root: nothing -> "/c""#,
            "zookeeper.digest: *** -> ***",
            r#"zookeeper.root: "/r" -> "/s""#,
        ]
    );
    assert!(!format!("{new:?}").contains("u:new"), "a secret");
    for change in old.changes(&new) {
        new.take(&change.key, &old);
    }
    assert_eq!(old.changes(&new), []);
}

#[test]
fn optional_keys() {
    let text = "zookeeper: {address: 'h:1', root: /r, digest: 'u:p', clusters_root: /c, preload: true, state_file: /s}";
    let zookeeper = parse(text, true).settings.unwrap().zookeeper.unwrap();
    assert_eq!(zookeeper.digest.as_deref(), Some("u:p"));
    assert_eq!(zookeeper.clusters_root.as_deref(), Some("/c"));
    assert!(zookeeper.preload);
    assert_eq!(zookeeper.state_file, Some("/s".into()));
    assert!(!format!("{zookeeper:?}").contains("u:p"), "a secret");
    let text = "zookeeper: {address: 'h:1', root: /r, digest: secret, clusters_root: /r, preload: 7, state_file: []}";
    let faults = lines(&parse(text, true).settings.unwrap_err()).join("\n");
    for key in [
        "digest",
        "clusters_root: want a znode path, /a/b, neither the root nor below it",
        "preload",
        "state_file",
    ] {
        assert!(faults.contains(key), "{key} in {faults}");
    }
    assert!(!faults.contains("secret"), "{faults}");
}

#[test]
fn logs_and_stops() {
    let settings = parse("", false).settings.unwrap();
    assert_eq!(settings.log.keep.max_bytes, 500 << 20);
    assert_eq!(settings.stop.min_age, Duration::from_secs(61));
    let text = "{stop: {grace: 100}, log: {level: 'info,zk=debug', format: json}}";
    let settings = parse(text, false).settings.unwrap();
    assert_eq!((settings.log.level.as_str(), settings.log.json), ("info,zk=debug", true));
    for bad in [
        "{log: {level: loud}}",
        "{log: {level: 'a=b=info'}}",
        "{log: {format: xml}}",
        "{stop: {grace: 0}}",
    ] {
        assert!(parse(bad, false).settings.is_err(), "{bad}");
    }
}

#[test]
fn metrics_have_the_tags_of_the_file() {
    let metric = |text: &str| parse(text, false).settings.map(|settings| settings.metric);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let default = MetricSettings {
        kind: MetricKind::Prometheus,
        tags: Vec::new(),
        by_table: true,
        falcon_agent: "127.0.0.1:1988".parse().unwrap(),
        falcon_step: Duration::from_secs(60),
    };
    assert_eq!(metric("").unwrap(), default);
    assert_eq!(metric("metric: {tags: }").unwrap(), default);
    let text = "metric: {type: falcon, tags: 'region=a b, x-y=b=c', falcon_agent: '10.0.0.1:1', falcon_step_s: 5, by_table: false}";
    let want = MetricSettings {
        kind: MetricKind::Falcon,
        tags: vec![pair("region", "a b"), pair("x-y", "b=c")],
        by_table: false,
        falcon_agent: "10.0.0.1:1".parse().unwrap(),
        falcon_step: Duration::from_secs(5),
    };
    assert_eq!(metric(text).unwrap(), want);

    let text = "metric: {type: falcon, tags: 'data-center=x, 9a=b, é=c, __d=e, f=g'}";
    let labels = metric(text).unwrap().labels();
    let want = [("data_center", "x"), ("tag_9a", "b"), ("_", "c"), ("tag___d", "e"), ("f", "g")];
    assert_eq!(labels, want.map(|(name, value)| pair(name, value)));

    for (why, kind, tags, want) in [
        ("no list", "prometheus", "{a: b}", "want a list of name=value, got keys and values"),
        ("no value", "prometheus", "[a]", r#"want name=value, got "a""#),
        ("a digit first", "prometheus", "[9a=b]", "want a label name"),
        ("a dash", "prometheus", "[x-y=b]", "want a label name"),
        ("no name", "prometheus", "['=b']", "want a label name"),
        ("reserved", "prometheus", "[__a=b]", "want a label name"),
        ("no name", "falcon", "['=b']", "want a tag name"),
        ("a space", "falcon", "[a b=c]", "want a tag name"),
        ("its own label", "prometheus", "[table=x]", "want another name"),
        ("the first tag", "falcon", "[name=x]", "want a tag name"),
        ("its own label", "falcon", "[pegasus-cluster=x]", "want another name"),
        ("twice as labels", "falcon", "[a-b=1, a_b=2]", r#"want each name once, got "a_b=2""#),
        ("twice", "prometheus", "[a=1, b=2, a=3]", r#"want each name once, got "a=3""#),
    ] {
        let text = format!("metric:\n  type: {kind}\n  tags: {tags}\n");
        let faults = lines(&metric(&text).unwrap_err());
        let want = format!("line 3: metric.tags: {want}");
        assert!(faults.len() == 1 && faults[0].starts_with(&want), "{why}: {faults:?}");
    }
}

#[test]
fn pages_are_where_the_go_proxys_are_or_nowhere() {
    for (text, want) in [
        ("", Some("0.0.0.0:9091")),
        ("admin: {listen: '[::1]:80'}", Some("[::1]:80")),
        ("admin: {listen: none}", None),
    ] {
        let admin = parse(text, false).settings.unwrap().admin;
        assert_eq!(admin, want.map(|addr| addr.parse().unwrap()), "{text}");
    }
    let faults = lines(&parse("admin: {listen: 9091}", false).settings.unwrap_err());
    assert_eq!(faults, [r#"line 1: admin.listen: want IP:port or none, got "9091""#]);
}

#[test]
fn znode_paths() {
    for (path, good) in [
        ("/a", true),
        ("/a/b-c.d", true),
        ("a", false),
        ("/", false),
        ("/a/", false),
        ("/a//b", false),
        ("/a/../b", false),
    ] {
        let text = format!("zookeeper: {{address: [h:1], root: {path}}}");
        assert_eq!(parse(&text, true).settings.is_ok(), good, "{path}");
    }
}

#[test]
fn settings_that_are_good_alone_and_not_together() {
    for (why, text, fault, warning) in [
        (
            "health checks and clients share a port",
            "listen: 0.0.0.0:9091",
            "admin.listen: want another port than that of listen, got 0.0.0.0:9091",
            "",
        ),
        (
            "on one of its addresses",
            "listen: 10.0.0.1:80\nadmin: {listen: 0.0.0.0:80}",
            "line 2: admin.listen: want another port than that of listen, got 0.0.0.0:80",
            "",
        ),
        (
            "two ports for clients are one",
            "listeners: [{listen: 10.0.0.1:34601}]",
            "line 1: listeners: want another port than that of listen, got 10.0.0.1:34601",
            "",
        ),
        (
            "so are two further ones",
            "listeners: [{listen: 10.0.0.1:2}, {listen: 0.0.0.0:2}]",
            "line 1: listeners: want another port than that of listeners, got 0.0.0.0:2",
            "",
        ),
        (
            "pages at a further port",
            "listeners: [{listen: 0.0.0.0:9091}]",
            "admin.listen: want another port than that of listeners, got 0.0.0.0:9091",
            "",
        ),
        ("two addresses", "listen: 10.0.0.1:80\nadmin: {listen: 10.0.0.2:80}", "", ""),
        ("any port", "listen: 10.0.0.1:0\nadmin: {listen: 10.0.0.1:0}", "", ""),
        (
            "clients are cut off",
            "stop: {delay: 5000, min_age: 61000, grace: 65999}",
            "",
            "line 1: stop.grace: 65999 is less than stop.delay + stop.min_age, 66000: connections \
             are closed before they are min_age old, and Go clients do not reconnect for a minute",
        ),
        ("they are not", "stop: {delay: 5000, min_age: 61000, grace: 66000}", "", ""),
        (
            "more of one than of all",
            "limits: {max_connections: 100, max_connections_per_address: 101}",
            "",
            "line 1: limits.max_connections_per_address: 101 is above limits.max_connections, 100: that limit applies",
        ),
        ("a default is no mistake", "limits: {max_connections: 100}", "", ""),
        (
            "the same of queries",
            "limits: {max_pending: 7, max_pending_per_client: 8}",
            "",
            "line 1: limits.max_pending_per_client: 8 is above limits.max_pending, 7: that limit applies",
        ),
        (
            "the same of bytes",
            "limits: {max_unread_bytes: 1048577, max_unread_total_bytes: 1048576}",
            "",
            "line 1: limits.max_unread_bytes: 1048577 is above limits.max_unread_total_bytes, 1048576: that limit applies",
        ),
        ("more calls than workers", "workers: 8\nmax_calls_per_cluster: 16", "", ""),
    ] {
        let checked = parse(text, false);
        let faults = lines(&checked.settings.err().unwrap_or_default()).join("\n");
        assert_eq!(
            (faults.as_str(), &*lines(&checked.warnings).join("\n")),
            (fault, warning),
            "{why}"
        );
    }
}

#[test]
fn further_ports_are_a_list() {
    let listener = |listen: &str, host_port_fields| {
        let listen = listen.parse().unwrap();
        ListenerSettings { listen, host_port_fields }
    };
    let (keep, remove) = (HostPortFields::Keep, HostPortFields::Remove);
    for (text, want) in [
        ("", vec![]),
        ("listeners:", vec![]),
        ("listeners: []", vec![]),
        ("listeners: [{listen: 0.0.0.0:1}]", vec![listener("0.0.0.0:1", keep)]),
        (
            "listeners:\n  - listen: '[::]:1'\n    host_port_fields: remove\n  \
             - {Host_Port_Fields: keep, Listen: '10.0.0.1:2'}\n",
            vec![listener("[::]:1", remove), listener("10.0.0.1:2", keep)],
        ),
    ] {
        let checked = parse(text, false);
        assert_eq!(checked.warnings, [], "{text}");
        assert_eq!(checked.settings.unwrap().listeners, want, "{text}");
    }
    let text = "\
listeners:
  - listen: here
    host_port_fields: drop
  - {host_port_fields: remove}
  - 0.0.0.0:1
  - listen: 0.0.0.0:1
    listen: 0.0.0.0:2
  - listen: 0.0.0.0:3
    extra: 1
";
    let checked = parse(text, false);
    assert_eq!(
        lines(&checked.settings.unwrap_err()),
        [
            "line 1: listeners[2]: want listen and host_port_fields, got \"0.0.0.0:1\"",
            "line 2: listeners[0].listen: want IP:port, got \"here\"",
            "line 3: listeners[0].host_port_fields: want keep or remove, got \"drop\"",
            "line 4: listeners[1].listen: want IP:port, got nothing",
            "line 7: listeners[3].listen: want each key once, got \"0.0.0.0:2\"",
        ]
    );
    assert_eq!(lines(&checked.warnings), ["line 9: listeners[4].extra: unknown key"]);
    for (text, want) in [
        ("listeners: 0.0.0.0:1", "want a list of {listen, host_port_fields}, got \"0.0.0.0:1\""),
        (
            "listeners: {listen: 0.0.0.0:1}",
            "want a list of {listen, host_port_fields}, got keys and values",
        ),
    ] {
        let faults = lines(&parse(text, false).settings.unwrap_err());
        assert_eq!(faults, [format!("line 1: listeners: {want}")], "{text}");
    }
    let many = format!("listeners: [{}]", ["{listen: '[::]:0'}"; 17].join(", "));
    let faults = lines(&parse(&many, false).settings.unwrap_err());
    assert_eq!(faults, ["line 1: listeners: want at most 16 listeners, got 17"]);
}

#[test]
fn an_unknown_key_is_told_with_the_one_that_was_meant() {
    for (text, want) in [
        ("lisen: 1", "line 1: lisen: unknown key; did you mean listen?"),
        (
            "zookeeper: {address: [h:1], root: /r, tiemout: 7}",
            "line 1: zookeeper.tiemout: unknown key; did you mean zookeeper.timeout?",
        ),
        (
            "limits: {query_timeout_ms: 7}",
            "line 1: limits.query_timeout_ms: unknown key; did you mean query_timeout_ms?",
        ),
        ("more: {a: 1, b: 2}", "line 1: more: unknown key"),
    ] {
        assert_eq!(lines(&parse(text, false).warnings), [want], "{text}");
    }
}

#[test]
fn every_setting_is_known_with_its_value_and_whether_it_is_a_default() {
    let text =
        "workers: 8\nzookeeper: {address: [h:1], root: /r, digest: 'u:p'}\nadmin: {listen: none}";
    let settings = parse(text, true).settings.unwrap();
    let shown = |key: &str| {
        let (_, setting) = settings.values.iter().find(|(name, _)| *name == key).expect(key);
        (setting.shown().to_string(), setting.line)
    };
    assert_eq!(shown("workers"), ("8".to_owned(), 1));
    assert_eq!(shown("listen"), (r#""0.0.0.0:34601""#.to_owned(), 0));
    assert_eq!(shown("zookeeper.digest"), (r#""***""#.to_owned(), 2));
    assert_eq!(shown("zookeeper.state_file"), ("null".to_owned(), 0));
    assert_eq!(shown("admin.listen"), ("null".to_owned(), 3));
    let known = parse("", false).known.len();
    assert_eq!(settings.values.iter().count(), known, "all that a file can have");
}
