//! Finds the known word that an unknown word was probably meant to be. Pure.

/// The known word nearest to `word`, if a typing error explains the difference.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase();
    let close = |known: &&'a str| {
        // The right key in the wrong section is no typing error, but a frequent mistake.
        let apart = distance(&word.to_lowercase(), known);
        let apart = if last(word) == last(known) { apart.min(1) } else { apart };
        (apart <= (word.chars().count() / 4).clamp(1, 3)).then_some(apart)
    };
    let near = known.into_iter().filter_map(|known| Some((close(&known)?, known)));
    near.min_by_key(|(apart, _)| *apart).map(|(_, known)| known)
}

/// Number of letters that are missing, added, changed, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = last;
        last = row;
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_recognized_and_another_word_is_not() {
        let known = ["check", "query", "listen", "workers", "query_timeout_ms", "admin.listen"];
        for (word, want) in [
            ("chek", Some("check")),
            ("chekc", Some("check")),
            ("quer", Some("query")),
            ("lisen", Some("listen")),
            ("Worker", Some("workers")),
            ("zookeeper.query_timeout_ms", Some("query_timeout_ms")),
            ("admin.lisen", Some("admin.listen")),
            ("my.yml", None),
            ("extra", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(word, known), want, "{word}");
        }
    }
}
