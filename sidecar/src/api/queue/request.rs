//! What is asked of queues.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use concordat_protocol::{
    Millis,
    queue::{delivery::Verdict, location::Receipt},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{api::duration::GoDuration, problem::Problem};

/// Messages of one receive, receipts of one settlement, dead letters of one look.
const MOST: u32 = 1_000;
/// Bounds of a visibility, milliseconds.
const VISIBILITY: std::ops::RangeInclusive<Millis> = 1_000..=43_200_000;
/// The longest delay of a nack, milliseconds.
const LONGEST_DELAY: Millis = 43_200_000;
/// The longest reason, bytes.
const LONGEST_REASON: usize = 1_024;

/// Path of a queue.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct QueueName {
    /// Name of the Queue.
    pub(super) queue: String,
}

/// Path of a receipt.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ReceiptPath {
    /// Name of the Queue.
    pub(super) queue: String,
    /// What receive answered.
    #[param(value_type = String)]
    pub(super) receipt: Encoded,
}

/// Path of a group.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct Group {
    /// Name of the Queue.
    pub(super) queue: String,
    /// Name of the group.
    #[expect(dead_code, reason = "no mode with groups works yet")]
    pub(super) group: String,
}

/// A receipt as clients have it: opaque.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(transparent)]
pub(super) struct Encoded(String);

impl From<&Receipt> for Encoded {
    fn from(receipt: &Receipt) -> Self {
        Self(URL_SAFE_NO_PAD.encode(receipt.to_string()))
    }
}

impl Encoded {
    fn decode(&self) -> Option<Receipt> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(&self.0).ok()?).ok()?;
        text.parse().ok()
    }
}

/// The receipts that texts are, 1 to 1,000 of them.
pub(super) fn receipts(encoded: &[Encoded]) -> Result<Vec<Receipt>, Problem> {
    if encoded.is_empty() || encoded.len() > MOST as usize {
        return Err(Problem::invalid(format!("receipts: give 1 to {MOST} of them")));
    }
    let receipt = |(index, encoded): (usize, &Encoded)| {
        encoded.decode().ok_or_else(|| Problem::invalid(format!("receipts[{index}]: it is not a receipt")))
    };
    encoded.iter().enumerate().map(receipt).collect()
}

/// A visibility within its bounds, in milliseconds.
pub(super) fn visibility(GoDuration(visibility): GoDuration) -> Result<Millis, Problem> {
    if VISIBILITY.contains(&visibility) {
        return Ok(visibility);
    }
    Err(Problem::invalid("visibility: write 1s to 12h"))
}

/// How messages are received.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ReceiveParams {
    /// At most this many messages, 1 to 1,000; by default 1.
    max: u32,
    /// How long to wait for the first one; by default not at all. At most 10m.
    pub(super) wait: GoDuration,
    /// How long deliveries last, 1s to 12h; by default the queue's.
    visibility: Option<GoDuration>,
    /// Reserved for the modes PubSub and Log.
    group: Option<String>,
}

impl Default for ReceiveParams {
    fn default() -> Self {
        Self { max: 1, wait: GoDuration(0), visibility: None, group: None }
    }
}

impl ReceiveParams {
    pub(super) fn check(&self) -> Result<(u32, Option<Millis>), Problem> {
        if self.group.is_some() {
            return Err(Problem::invalid(
                "group: groups belong to the modes PubSub and Log; this is a WorkQueue",
            ));
        }
        if !(1..=MOST).contains(&self.max) {
            return Err(Problem::invalid(format!("max: write 1 to {MOST}")));
        }
        if self.wait.0 > 600_000 {
            return Err(Problem::invalid("wait: write at most 10m"));
        }
        Ok((self.max, self.visibility.map(visibility).transpose()?))
    }
}

/// What a receive may bring along.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReceiveBody {
    /// Deliveries to acknowledge: what an earlier receive answered, 1 to 1,000. They are acknowledged at once; what
    /// came of it is told with the messages, or when the wait ends.
    pub(super) ack: Option<Vec<Encoded>>,
}

/// Deliveries to acknowledge.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AckBody {
    /// What receive answered, 1 to 1,000.
    pub(super) receipts: Vec<Encoded>,
}

/// Deliveries that failed.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NackBody {
    /// What receive answered, 1 to 1,000.
    pub(super) receipts: Vec<Encoded>,
    /// How long until they come again, at most 12h; by default the queue's back-off.
    delay: Option<GoDuration>,
    /// Why, for people; kept with dead letters. At most 1,024 bytes.
    #[serde(default)]
    reason: String,
    /// Whether they become dead letters at once.
    #[serde(default)]
    dead_letter: bool,
}

impl NackBody {
    pub(super) fn verdict(&self) -> Result<Verdict, Problem> {
        if self.delay.is_some_and(|delay| delay.0 > LONGEST_DELAY) {
            return Err(Problem::invalid("delay: write at most 12h"));
        }
        if self.reason.len() > LONGEST_REASON {
            return Err(Problem::invalid(format!("reason: write at most {LONGEST_REASON} bytes")));
        }
        let reason = if self.reason.is_empty() { "the consumer gave it back" } else { &self.reason };
        Ok(Verdict::Nack {
            delay: self.delay.map(|delay| delay.0),
            reason: reason.to_owned(),
            dead_letter: self.dead_letter,
        })
    }
}

/// Deliveries that shall last longer.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendBody {
    /// What receive answered, 1 to 1,000.
    pub(super) receipts: Vec<Encoded>,
    /// How long from now, 1s to 12h; by default the queue's.
    pub(super) visibility: Option<GoDuration>,
}

/// How dead letters are browsed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct DeadParams {
    /// At most this many, 1 to 1,000; by default 100.
    max: u32,
}

impl Default for DeadParams {
    fn default() -> Self {
        Self { max: 100 }
    }
}

impl DeadParams {
    pub(super) fn check(&self) -> Result<usize, Problem> {
        if (1..=MOST).contains(&self.max) {
            return Ok(self.max as usize);
        }
        Err(Problem::invalid(format!("max: write 1 to {MOST}")))
    }
}

/// Which dead letters to put back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedriveBody {
    /// Those of these ids.
    ids: Option<Vec<String>>,
    /// All of them.
    #[serde(default)]
    all: bool,
}

impl RedriveBody {
    /// The ids; `None` for all.
    pub(super) fn check(self) -> Result<Option<BTreeSet<String>>, Problem> {
        match (self.ids, self.all) {
            (Some(ids), false) => Ok(Some(ids.into_iter().collect())),
            (None, true) => Ok(None),
            _ => Err(Problem::invalid(r#"write {"ids":[…]} or {"all":true}"#)),
        }
    }
}
