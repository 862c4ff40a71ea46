//! The known word that a misspelt one was likely meant to be.

/// Longest word compared, in characters: the distance costs the product of both lengths.
const CHARS_MAX: usize = 64;

/// The word with the fewest slips against `found`, where they are few enough to be slips at all.
pub(super) fn nearest<'w>(found: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    if found.chars().count() > CHARS_MAX {
        return None;
    }
    let allowed = (found.chars().count() / 3).clamp(1, 3);
    words
        .into_iter()
        .filter_map(|word| {
            let distance = distance(found, word)?;
            // "timeout" for "header_timeout_ms": many letters missing, none wrong.
            let part = found.len() >= 4 && word.contains(found);
            (distance <= allowed || part).then_some((distance, word))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Letters inserted, dropped, changed, or swapped with their neighbour (optimal string alignment), ignoring case.
fn distance(found: &str, word: &str) -> Option<usize> {
    let found: Vec<char> = found.chars().map(|c| c.to_ascii_lowercase()).collect();
    let word: Vec<char> = word.chars().map(|c| c.to_ascii_lowercase()).collect();
    if word.len() > CHARS_MAX {
        return None;
    }
    let mut before_last = vec![0; word.len() + 1];
    let mut last: Vec<usize> = (0..=word.len()).collect();
    for row in 1..=found.len() {
        let mut current = vec![row; word.len() + 1];
        for column in 1..=word.len() {
            let changed = usize::from(found[row - 1] != word[column - 1]);
            let mut best = (last[column - 1] + changed).min(last[column] + 1).min(current[column - 1] + 1);
            if row > 1
                && column > 1
                && found[row - 1] == word[column - 2]
                && found[row - 2] == word[column - 1]
            {
                best = best.min(before_last[column - 2] + 1);
            }
            current[column] = best;
        }
        before_last = last;
        last = current;
    }
    last.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 5] = ["listen", "listener", "header_timeout_ms", "cluster", "route"];

    #[test]
    fn slips_find_their_word() {
        assert_eq!(nearest("lisetn", WORDS), Some("listen"));
        assert_eq!(nearest("listeners", WORDS), Some("listener"));
        assert_eq!(nearest("Cluster", WORDS), Some("cluster"));
        assert_eq!(nearest("rout", WORDS), Some("route"));
        assert_eq!(nearest("timeout", WORDS), Some("header_timeout_ms"));
    }

    #[test]
    fn other_words_find_none() {
        assert_eq!(nearest("zebra", WORDS), None);
        assert_eq!(nearest("", WORDS), None);
        assert_eq!(nearest(&"listen".repeat(1_000), WORDS), None);
    }
}
