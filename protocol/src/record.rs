//! What is remembered under a key: every record there is, as a type. The bytes belong to the store.

use crate::{
    Definition, lock, queue,
    session::{Session, Stat},
    timeline::Timeline,
    transaction,
};

macro_rules! records {
    ($($(#[$doc:meta])* $name:ident($of:ty)),+ $(,)?) => {
        /// One record.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Record {
            $($(#[$doc])* $name($of)),+
        }
        $(impl From<$of> for Record {
            fn from(record: $of) -> Self {
                Self::$name(record)
            }
        })+
    };
}

records! {
    /// Under [`crate::Key::Definition`].
    Definition(Definition),
    /// Under [`crate::Key::Session`].
    Session(Session),
    /// Under [`crate::Key::Marker`].
    Marker(Marker),
    /// Under [`crate::Key::Work`].
    Work(transaction::Work),
    /// Under [`crate::Key::Answer`].
    Answer(transaction::Reply),
    /// Under [`crate::Key::Transaction`].
    Transaction(transaction::Transaction),
    /// Under [`crate::Key::Done`].
    Done(transaction::Finished),
    /// Under [`crate::Key::Holder`].
    Holder(lock::Holder),
    /// Under [`crate::Key::Waiter`].
    Waiter(lock::Waiter),
    /// Under [`crate::Key::Shadow`].
    Shadow(lock::Shadow),
    /// Under [`crate::Key::Segment`].
    Segment(queue::Segment),
    /// Under [`crate::Key::Want`].
    Want(lock::Want),
    /// Under [`crate::Key::Progress`].
    Progress(queue::Progress),
    /// Under [`crate::Key::Claim`].
    Claim(queue::Claim),
    /// Under [`crate::Key::Dead`].
    Dead(queue::DeadLetter),
    /// Under [`crate::Key::Dedup`].
    Dedup(queue::Dedup),
    /// Under [`crate::Key::Stat`].
    Stat(Stat),
    /// Under [`crate::Key::Epoch`].
    Epoch(Epoch),
    /// Under [`crate::Key::Timeline`].
    Timeline(Timeline),
}

/// A marker carries nothing: its revisions tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Marker;

/// Which operator leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Identity of the leader (its pod), for people.
    pub holder: String,
}
