//! The sorted names of all tables: one block of text and one block of offsets. Pure.
//!
//! ZooKeeper may have 100,000 names, and the list is replaced as a whole. A set of strings would leave as many holes in
//! the heap each time; two blocks go back to the system.

/// A sorted list of names, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    text: Box<str>,
    /// Where each name ends in the text; the next name begins there.
    ends: Box<[u32]>,
}

impl Names {
    /// Sorts the names. Their text is shorter than 4 GiB, because it came in one frame.
    pub fn new(mut names: Vec<&str>) -> Self {
        names.sort_unstable();
        names.dedup();
        let mut text = String::with_capacity(names.iter().map(|name| name.len()).sum());
        let ends = names.iter().map(|name| {
            text.push_str(name);
            text.len() as u32
        });
        let ends = ends.collect();
        Names { text: text.into(), ends }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.at(middle).cmp(name) {
                std::cmp::Ordering::Equal => return true,
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        false
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).map(|index| self.at(index))
    }

    fn at(&self, index: usize) -> &str {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start as usize..self.ends[index] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_and_no_other() {
        let names = Names::new(vec!["orders", "a", "users", "orders", "", "abc"]);
        assert_eq!(names.iter().collect::<Vec<_>>(), ["", "a", "abc", "orders", "users"]);
        for name in ["", "a", "abc", "orders", "users"] {
            assert!(names.contains(name), "{name:?}");
        }
        for name in ["ab", "abcd", "order", "ordersu", "z", "A"] {
            assert!(!names.contains(name), "{name:?}");
        }
        assert!(!Names::default().contains("a") && Names::default().is_empty());
        assert_eq!(names.len(), 5);
    }
}
