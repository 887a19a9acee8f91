//! What a DistributedTransaction declares: settings and participants.

use concordat_protocol::{Branch, definition, transaction};

use crate::record::{Enumerated, Error, enumerated};

enumerated!(transaction::Protocol { TwoPhaseCommit = 1, ThreePhaseCommit = 2, Saga = 3, Tcc = 4, Message = 5 });

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::record) struct Settings {
    #[prost(int32, tag = "1")]
    protocol: i32,
    #[prost(message, repeated, tag = "2")]
    participants: Vec<Participant>,
    #[prost(uint64, tag = "3")]
    timeout: u64,
    #[prost(bool, tag = "4")]
    once: bool,
    #[prost(uint64, tag = "5")]
    retention: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::record) struct Participant {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    app: String,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(uint64, tag = "4")]
    timeout: u64,
    #[prost(message, optional, tag = "5")]
    retry: Option<Backoff>,
    #[prost(uint32, tag = "6")]
    attempts: u32,
    #[prost(string, repeated, tag = "7")]
    after: Vec<String>,
    #[prost(string, optional, tag = "8")]
    input: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::record) struct Backoff {
    #[prost(uint64, tag = "1")]
    initial: u64,
    #[prost(uint64, tag = "2")]
    max: u64,
    #[prost(uint32, tag = "3")]
    factor_milli: u32,
}

impl From<&transaction::Settings> for Settings {
    fn from(settings: &transaction::Settings) -> Self {
        let transaction::Settings { protocol, participants, timeout, once, retention } = settings;
        Self {
            protocol: protocol.number(),
            participants: participants.iter().map(Into::into).collect(),
            timeout: *timeout,
            once: *once,
            retention: *retention,
        }
    }
}

impl TryFrom<Settings> for transaction::Settings {
    type Error = Error;

    fn try_from(settings: Settings) -> Result<Self, Error> {
        let Settings { protocol, participants, timeout, once, retention } = settings;
        Ok(Self {
            protocol: transaction::Protocol::of_number(protocol)?,
            participants: participants.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            timeout,
            once,
            retention,
        })
    }
}

impl From<&transaction::Participant> for Participant {
    fn from(participant: &transaction::Participant) -> Self {
        let transaction::Participant { name, app, path, timeout, retry, attempts, after, input } =
            participant;
        let definition::Backoff { initial, max, factor_milli } = *retry;
        Self {
            name: name.to_string(),
            app: app.to_string(),
            path: path.clone(),
            timeout: *timeout,
            retry: Some(Backoff { initial, max, factor_milli }),
            attempts: *attempts,
            after: after.iter().map(ToString::to_string).collect(),
            input: input.clone(),
        }
    }
}

impl TryFrom<Participant> for transaction::Participant {
    type Error = Error;

    fn try_from(participant: Participant) -> Result<Self, Error> {
        let Participant { name, app, path, timeout, retry, attempts, after, input } = participant;
        let Backoff { initial, max, factor_milli } = retry.ok_or(Error::Missing("retry"))?;
        Ok(Self {
            name: name.into(),
            app: app.into(),
            path,
            timeout,
            retry: definition::Backoff { initial, max, factor_milli },
            attempts,
            after: after.into_iter().map(Branch::from).collect(),
            input,
        })
    }
}
