use super::*;

/// A query: its host and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Query {
    host: u8,
    number: u32,
    deadline: Instant,
    is_gone: bool,
}

impl Waiter for Query {
    fn host(&self) -> IpAddr {
        IpAddr::from([10, 0, 0, self.host])
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_gone(&self) -> bool {
        self.is_gone
    }
}

fn server(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, 1], n))
}

fn key(name: &str) -> Key {
    Arc::from(name.as_bytes())
}

struct World {
    sharing: Sharing<Query>,
    start: Instant,
    numbers: u32,
}

impl World {
    fn new() -> Self {
        World { sharing: Sharing::default(), start: Instant::now(), numbers: 0 }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn join(&mut self, name: &str, host: u8) -> u32 {
        self.numbers += 1;
        let deadline = self.at(1000 + u64::from(self.numbers));
        let query = Query { host, number: self.numbers, deadline, is_gone: false };
        self.sharing.join(key(name), query);
        self.numbers
    }

    /// The questions of the next call, at the first of these servers that is free.
    fn next_of(&mut self, max: usize, servers: &[u16], ms: u64) -> Option<Batch> {
        let servers: Vec<SocketAddr> = servers.iter().map(|n| server(*n)).collect();
        self.sharing.next(max, self.start + Duration::from_millis(ms), |tried, sends| {
            let is_free = |addr: &&SocketAddr| {
                !tried.contains(addr) && !sends.iter().any(|(_, server)| server == *addr)
            };
            servers.iter().find(is_free).copied()
        })
    }

    fn next(&mut self) -> Vec<Sent> {
        self.next_of(64, &[1, 2, 3], 0).map_or(Vec::new(), |batch| batch.questions)
    }

    fn answered(&mut self, sent: &Sent) -> Vec<u32> {
        self.sharing.answered(sent).map(|query| query.number).collect()
    }

    fn assert_is_empty(&self) {
        let sharing = &self.sharing;
        assert!(sharing.is_empty() && !sharing.is_ready(), "{} ready", sharing.ready);
        assert!(sharing.later.is_empty() && sharing.deadlines.is_empty());
        assert_eq!(sharing.waiting(), 0);
    }
}

fn names(batch: &[Sent]) -> Vec<String> {
    batch.iter().map(|sent| String::from_utf8(sent.key.to_vec()).unwrap()).collect()
}

#[test]
fn queries_during_a_call_share_the_next_one() {
    let mut world = World::new();
    let first = world.join("a", 1);
    let other = world.join("b", 1);
    let sent = world.next();
    assert_eq!(names(&sent), ["a", "b"], "one call for both questions");
    let late = [world.join("a", 1), world.join("a", 2)];
    assert!(!world.sharing.is_ready(), "the question is under way");
    assert_eq!(world.answered(&sent[0]), [first], "no answer older than its query");
    let again = world.next();
    assert_eq!(names(&again), ["a"]);
    assert_eq!(world.answered(&again[0]), late);
    assert_eq!(world.answered(&sent[1]), [other]);
    assert!(world.answered(&sent[1]).is_empty(), "an answer that came twice");
    world.assert_is_empty();
}

#[test]
fn a_question_goes_on_to_the_next_server_and_then_waits() {
    let mut world = World::new();
    let query = world.join("a", 1);
    let first = world.next_of(64, &[1, 2], 0).unwrap();
    assert_eq!(first.server, server(1));
    world.sharing.unanswered(&first.questions[0], server(1));
    let second = world.next_of(64, &[1, 2], 0).unwrap();
    assert_eq!(second.server, server(2));
    world.sharing.unanswered(&second.questions[0], server(2));
    assert!(world.next_of(64, &[1, 2], 0).is_none(), "all were asked");
    assert!(!world.sharing.is_ready());
    world.sharing.wake(world.at(49));
    assert!(!world.sharing.is_ready());
    world.sharing.wake(world.at(50));
    let third = world.next_of(64, &[1, 2], 50).unwrap();
    assert_eq!(third.server, server(1), "the next round");
    assert_eq!(world.answered(&third.questions[0]), [query]);
    world.assert_is_empty();
}

#[test]
fn a_slow_server_is_listened_to_beside_the_next() {
    let mut world = World::new();
    let query = world.join("a", 1);
    let slow = world.next_of(64, &[1, 2], 0).unwrap();
    world.sharing.slow(&slow.questions[0], server(1));
    let late = world.join("a", 1);
    let next = world.next_of(64, &[1, 2], 0).unwrap();
    assert_eq!(next.server, server(2));
    assert_eq!(world.answered(&slow.questions[0]), [query], "the slow one after all");
    assert!(world.sharing.is_wanted(&next.questions[0]));
    assert_eq!(world.answered(&next.questions[0]), [late], "asked after it came");
    world.assert_is_empty();
}

#[test]
fn a_server_that_has_the_question_still_is_not_asked_again() {
    let mut world = World::new();
    world.join("a", 1);
    let slow = world.next_of(64, &[1, 2], 0).unwrap();
    world.sharing.slow(&slow.questions[0], server(1));
    let next = world.next_of(64, &[1, 2], 0).unwrap();
    world.sharing.unanswered(&next.questions[0], server(2));
    assert!(world.next_of(64, &[1, 2], 0).is_none());
    world.sharing.wake(world.at(50));
    assert_eq!(world.next_of(64, &[1, 2], 50).unwrap().server, server(2), "1 has it still");
}

/// Otherwise a server that lost one request would never be asked again for a table with constant queries.
#[test]
fn a_send_is_forgotten_with_the_last_query_that_it_was_for() {
    let mut world = World::new();
    let old = world.join("t", 1);
    let lost = world.next().remove(0);
    world.sharing.slow(&lost, server(1));
    let asked = world.join("t", 1);
    assert_eq!(world.next_of(8, &[1, 2], 500).map(|batch| batch.server), Some(server(2)));
    let fresh = world.join("t", 2);
    let expired = |world: &mut World, ms| {
        let expired = world.sharing.expire(world.at(ms));
        expired.iter().map(|expired| expired.waiter.number).collect::<Vec<_>>()
    };
    assert_eq!(expired(&mut world, 1000 + u64::from(old)), [old]);
    assert!(!world.sharing.is_wanted(&lost), "its answer is of no use");
    world.sharing.unanswered(&lost, server(1));
    assert!(!world.sharing.is_ready(), "the second server has been asked just now");
    assert_eq!(expired(&mut world, 1000 + u64::from(asked)), [asked]);
    let again = world.next_of(8, &[1, 2], 1100).expect("nobody was asked for this query");
    assert_eq!(again.server, server(1));
    assert_eq!(world.answered(&again.questions[0]), [fresh]);
    world.assert_is_empty();
}

#[test]
fn a_link_that_had_died_costs_no_server() {
    let mut world = World::new();
    let query = world.join("a", 1);
    let sent = world.next_of(64, &[1, 2], 0).unwrap();
    world.sharing.take_back(&sent.questions[0]);
    let again = world.next_of(64, &[1, 2], 0).unwrap();
    assert_eq!(again.server, server(1));
    assert_eq!(world.answered(&again.questions[0]), [query]);
    world.assert_is_empty();
}

#[test]
fn hosts_take_turns_and_a_shared_question_stands_in_each_queue() {
    let mut world = World::new();
    (0..100).for_each(|n| _ = world.join(&format!("much {n}"), 1));
    world.join("little", 2);
    world.join("much 99", 3);
    let batch = world.next_of(4, &[1], 0).unwrap();
    assert_eq!(names(&batch.questions), ["much 0", "little", "much 99", "much 1"]);
}

#[test]
fn questions_without_an_answer_leave_room_for_others() {
    let mut world = World::new();
    (0..12).for_each(|n| _ = world.join(&format!("mute {n}"), 1));
    let mute = world.next_of(64, &[1], 0).unwrap();
    mute.questions.iter().for_each(|sent| world.sharing.unanswered(sent, server(9)));
    world.join("good", 1);
    let next = world.next_of(4, &[1], 0).unwrap();
    assert!(names(&next.questions).contains(&"good".to_owned()), "{next:?}");
}

#[test]
fn a_question_with_a_large_answer_is_asked_alone() {
    let mut world = World::new();
    world.sharing.mark_large(&key("large"));
    let _ = ["a", "large", "b", "large too"].map(|name| world.join(name, 1));
    assert_eq!(names(&world.next()), ["a", "b", "large too"]);
    assert_eq!(names(&world.next()), ["large"]);
}

#[test]
fn long_arguments_go_in_several_calls() {
    let mut world = World::new();
    let long = "x".repeat(MAX_ARGS_BYTES / 2);
    let _ = ["a", "b", "c"].map(|name| world.join(&format!("{name}{long}"), 1));
    assert_eq!(world.next().len(), 1);
    let alone = "y".repeat(2 * MAX_ARGS_BYTES);
    world.join(&alone, 2);
    let sizes: Vec<usize> = std::iter::repeat_with(|| world.next().len()).take(4).collect();
    assert_eq!(sizes, [1, 1, 1, 0]);
}

#[test]
fn queries_expire_one_by_one_and_tell_whether_they_were_asked() {
    let mut world = World::new();
    let [first, second] = [world.join("a", 1), world.join("a", 2)];
    let sent = world.next();
    let late = world.join("a", 1);
    let mut expired = |ms| -> Vec<(u32, bool)> {
        let expired = world.sharing.expire(world.start + Duration::from_millis(ms));
        expired.iter().map(|e| (e.waiter.number, e.asked_at.is_some())).collect()
    };
    assert_eq!(expired(1000), []);
    assert_eq!(expired(1001), [(first, true)]);
    assert_eq!(expired(1003), [(second, true), (late, false)]);
    assert!(world.answered(&sent[0]).is_empty());
    world.assert_is_empty();
}

#[test]
fn questions_whose_clients_have_gone_are_not_asked() {
    let mut world = World::new();
    let query = Query { host: 1, number: 1, deadline: world.at(10), is_gone: true };
    world.sharing.join(key("a"), query);
    assert!(world.next().is_empty());
    assert_eq!(world.sharing.take_left(), [query]);
    world.assert_is_empty();
}

#[test]
fn what_is_taken_leaves_nothing_behind() {
    let mut world = World::new();
    let _ = ["a", "b", "c"].map(|name| world.join(name, 1));
    let sent = world.next_of(1, &[1], 0).unwrap();
    world.join("a", 2);
    assert_eq!(world.sharing.take(|_| true).len(), 4);
    assert!(!world.sharing.is_wanted(&sent.questions[0]));
    assert!(world.answered(&sent.questions[0]).is_empty());
    world.assert_is_empty();
    assert!(world.next().is_empty());
}

#[test]
fn keys_left_in_queues_do_not_pile_up() {
    let mut world = World::new();
    for n in 0..10_000 {
        world.join(&format!("t{n}"), (n % 7) as u8);
        world.sharing.take(|_| true);
    }
    assert!(world.sharing.queue.len() < 2_000, "{}", world.sharing.queue.len());
}

mod property {
    use super::*;
    use proptest::prelude::*;

    /// The next event; numbers are taken modulo the number of choices.
    #[derive(Clone, Debug)]
    enum Step {
        Join(u8, u8),
        Call(u8),
        Answer(u8),
        Fail(u8),
        Slow(u8),
        TakeBack(u8),
        Wake,
        Expire,
        Take(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5u8, 0..4u8).prop_map(|(table, host)| Step::Join(table, host)),
            4 => (1..6u8).prop_map(Step::Call),
            4 => any::<u8>().prop_map(Step::Answer),
            2 => any::<u8>().prop_map(Step::Fail),
            2 => any::<u8>().prop_map(Step::Slow),
            1 => any::<u8>().prop_map(Step::TakeBack),
            2 => Just(Step::Wake),
            1 => Just(Step::Expire),
            1 => (0..5u8).prop_map(Step::Take),
        ]
    }

    proptest! {
        /// Each query is answered, expired or taken exactly once. The send of its answer is newer than the query. No
        /// server has a question twice at a time.
        #[test]
        fn every_query_ends_once_and_with_no_answer_from_before(
            steps in proptest::collection::vec(step(), 0..300),
        ) {
            let mut world = World::new();
            let mut now_ms = 0;
            // Each send under way: the send, its server, and the number of queries when it was sent.
            let mut under_way: Vec<(Sent, SocketAddr, u32)> = Vec::new();
            let mut ended: Vec<u32> = Vec::new();
            for step in steps {
                now_ms += 7;
                let count = under_way.len().max(1);
                match step {
                    Step::Join(table, host) => {
                        world.join(&format!("t{table}"), host);
                    }
                    Step::Call(max) => {
                        if let Some(batch) = world.next_of(max.into(), &[1, 2, 3], now_ms) {
                            prop_assert!(!batch.questions.is_empty() && batch.questions.len() <= max.into());
                            for sent in batch.questions {
                                prop_assert!(
                                    !under_way.iter().any(|(other, server, _)| {
                                        other.key == sent.key && *server == batch.server
                                            && world.sharing.is_wanted(other)
                                    }),
                                    "asked twice at a time"
                                );
                                under_way.push((sent, batch.server, world.numbers));
                            }
                        }
                    }
                    Step::Answer(which) if !under_way.is_empty() => {
                        let (sent, _, asked) = under_way.remove(which as usize % count);
                        for number in world.answered(&sent) {
                            prop_assert!(number <= asked, "an answer older than its query");
                            ended.push(number);
                        }
                    }
                    Step::Fail(which) if !under_way.is_empty() => {
                        let (sent, server, _) = under_way.remove(which as usize % count);
                        world.sharing.unanswered(&sent, server);
                    }
                    Step::Slow(which) if !under_way.is_empty() => {
                        let (sent, server, _) = &under_way[which as usize % count];
                        world.sharing.slow(sent, *server);
                    }
                    Step::TakeBack(which) if !under_way.is_empty() => {
                        let (sent, ..) = under_way.remove(which as usize % count);
                        world.sharing.take_back(&sent);
                    }
                    Step::Wake => world.sharing.wake(world.at(now_ms)),
                    Step::Expire => {
                        let expired = world.sharing.expire(world.at(now_ms));
                        ended.extend(expired.iter().map(|expired| expired.waiter.number));
                    }
                    Step::Take(table) => {
                        let name = key(&format!("t{table}"));
                        let first = world.sharing.questions.get(&name);
                        let first = first.and_then(|q| Some(q.waiters.front()?.1.number));
                        let taken = world.sharing.take(|query| Some(query.number) == first);
                        ended.extend(taken.iter().map(|query| query.number));
                    }
                    _ => {}
                }
                for question in world.sharing.questions.values() {
                    let first = question.waiters.front().map(|(joined, _)| *joined);
                    prop_assert!(question.sends.iter().all(|(number, _)| Some(*number) > first));
                }
            }
            // Answer everything that is left.
            for round in 0..1_000 {
                if world.sharing.is_empty() {
                    break;
                }
                prop_assert!(round < 999, "{} still wait", world.sharing.waiting());
                for (sent, _, asked) in under_way.drain(..) {
                    for number in world.answered(&sent) {
                        prop_assert!(number <= asked);
                        ended.push(number);
                    }
                }
                now_ms += 200;
                world.sharing.wake(world.at(now_ms));
                while let Some(batch) = world.next_of(64, &[1, 2, 3], now_ms) {
                    let numbers = world.numbers;
                    under_way.extend(batch.questions.into_iter().map(|sent| (sent, batch.server, numbers)));
                }
            }
            ended.sort_unstable();
            prop_assert_eq!(ended, Vec::from_iter(1..=world.numbers));
            world.assert_is_empty();
        }

        /// Before a question, each other host has at most one question for each earlier question of the same host.
        #[test]
        fn no_question_waits_for_more_than_a_turn_of_each_host(
            asks in proptest::collection::vec((0..30u8, 0..5u8), 1..200),
        ) {
            let mut world = World::new();
            let mut ahead: HashMap<(u8, u8), usize> = HashMap::new();
            let mut of_host = [0usize; 5];
            for (table, host) in asks {
                world.join(&format!("t{table}"), host);
                ahead.entry((table, host)).or_insert_with(|| {
                    of_host[host as usize] += 1;
                    of_host[host as usize]
                });
            }
            let mut turn = 0;
            while let Some(batch) = world.next_of(1, &[1], 0) {
                turn += 1;
                let name = names(&batch.questions).remove(0);
                for ((table, _), before) in &ahead {
                    if format!("t{table}") == name {
                        prop_assert!(turn <= before * 5, "{} at turn {}, {} before it", name, turn, before);
                    }
                }
            }
        }
    }
}
