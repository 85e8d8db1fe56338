// SPDX-License-Identifier: GPL-2.0

//! A set of interrupt vectors, as the IRR, ISR and TMR hold it.

/// 256 bits, and a summary that makes the highest member quick to find.
///
/// # Invariants
///
/// Bit `i` of `occupied` is set exactly if `words[i]` is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors {
    words: [u32; 8],
    occupied: u8,
}

impl Vectors {
    /// The empty set.
    pub(super) const fn new() -> Self {
        // INVARIANT: all words are 0, and so is the summary.
        Self {
            words: [0; 8],
            occupied: 0,
        }
    }

    /// The highest member.
    pub(super) fn highest(&self) -> Option<u8> {
        let index = self.occupied.checked_ilog2()? as u8 & 7;
        let bit = self.words[usize::from(index)].checked_ilog2()? as u8;
        Some((index << 5) | bit)
    }

    /// The member, if there is only one.
    pub(super) fn only(&self) -> Option<u8> {
        let index = self.occupied.trailing_zeros() as usize & 7;
        let one = self.occupied.is_power_of_two() && self.words[index].is_power_of_two();
        self.highest().filter(|_| one)
    }

    /// Whether the vector is a member.
    pub(super) fn contains(&self, vector: u8) -> bool {
        (self.words[usize::from(vector >> 5)] >> (vector & 31)) & 1 != 0
    }

    /// Adds the vector.
    pub(super) fn insert(&mut self, vector: u8) {
        // INVARIANT: the word has at least this bit now.
        self.words[usize::from(vector >> 5)] |= 1 << (vector & 31);
        self.occupied |= 1 << (vector >> 5);
    }

    /// Takes the vector out.
    pub(super) fn remove(&mut self, vector: u8) {
        let index = usize::from(vector >> 5);
        self.set_word(index, self.words[index] & !(1 << (vector & 31)));
    }

    /// 32 vectors as their register shows them; `index` counts from vector 0, and is taken modulo 8.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.words[index & 7]
    }

    /// Replaces 32 vectors.
    pub(super) fn set_word(&mut self, index: usize, word: u32) {
        let index = index & 7;
        self.words[index] = word;
        // INVARIANT: the summary follows the word.
        self.occupied = self.occupied & !(1 << index) | (u8::from(word != 0) << index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_follows_inserts_and_removes() {
        let mut set = Vectors::new();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 255, 64] {
            set.insert(vector);
            assert!(set.contains(vector));
        }
        let mut seen = [0; 5];
        for slot in &mut seen {
            *slot = set.highest().unwrap();
            set.remove(*slot);
        }
        assert_eq!(seen, [255, 64, 32, 31, 0]);
        assert_eq!(set.only(), None);
        set.insert(77);
        assert_eq!(set.only(), Some(77));
        set.insert(78);
        assert_eq!(set.only(), None);
        set.remove(77);
        set.insert(200);
        assert_eq!(set.only(), None);
        set.remove(78);
        set.remove(200);
        assert_eq!(set, Vectors::new());
    }
}
