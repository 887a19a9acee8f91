//! How much of a lock a holder takes up.

/// A part of a whole: so many permits of so many. One rule serves every kind of lock: those who hold it together hold no
/// more than the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// How many permits.
    pub permits: u32,
    /// Of how many, when it was asked for.
    pub of: u32,
}

impl Share {
    /// The whole lock: the holder of a Mutex, the writer of a ReadWrite.
    pub const EXCLUSIVE: Self = Self { permits: u32::MAX, of: u32::MAX };

    /// A reader of a ReadWrite: any number of them fit, but none beside a writer.
    pub const READER: Self = Self { permits: 1, of: u32::MAX };

    /// So many permits of a Semaphore.
    pub fn permits(permits: u32, of: u32) -> Self {
        Self { permits, of }
    }

    /// Whether it fits beside `taken` permits.
    pub fn fits(self, taken: u64) -> bool {
        taken + u64::from(self.permits) <= u64::from(self.of)
    }

    /// Whether nobody else may hold the lock meanwhile.
    pub fn is_exclusive(self) -> bool {
        self.permits == self.of
    }
}
