//! Segments, the one record that is both hot and large, encoded without copying messages first.
//!
//! A property test holds these bytes to what the derived [`super::Segment`] decodes.

use concordat_protocol::queue;
use prost::encoding::{self, WireType};

/// The envelope of a [`super::Segment`], encoded from the messages where they are: no copy of a body but the last one.
pub(crate) fn encode_segment(version: u32, queue::Segment { messages }: &queue::Segment) -> Vec<u8> {
    const VERSION_TAG: u32 = 1;
    const SEGMENT_TAG: u32 = 10;
    const MESSAGES_TAG: u32 = 1;
    let lengths: Vec<usize> = messages.iter().map(|message| fields(message).map(Field::len).sum()).collect();
    let length: usize = lengths.iter().map(|length| 1 + delimited(*length)).sum();
    let mut bytes = Vec::with_capacity(length + 16);
    encoding::uint32::encode(VERSION_TAG, &version, &mut bytes);
    begin(SEGMENT_TAG, length, &mut bytes);
    for (message, length) in messages.iter().zip(lengths) {
        begin(MESSAGES_TAG, length, &mut bytes);
        fields(message).for_each(|field| field.encode(&mut bytes));
    }
    bytes
}

/// One field of a [`super::Message`] and its tag.
#[derive(Clone, Copy)]
enum Field<'a> {
    Bytes(u32, &'a Vec<u8>),
    Text(u32, &'a String),
    Pair(u32, &'a (String, String)),
    Number(u32, &'a u64),
}

/// The fields of a message as [`super::Message`] declares them, without those that have their default.
fn fields(message: &queue::Message) -> impl Iterator<Item = Field<'_>> {
    let queue::Message { body, content_type, key, headers, expires, published } = message;
    let before = [Field::Bytes(1, body), Field::Text(2, content_type), Field::Text(3, key)];
    let after = [Field::Number(5, expires), Field::Number(6, published)];
    let headers = headers.iter().map(|header| Field::Pair(4, header));
    before.into_iter().chain(headers).chain(after).filter(|field| !field.is_default())
}

impl Field<'_> {
    fn is_default(&self) -> bool {
        match self {
            Self::Bytes(_, bytes) => bytes.is_empty(),
            Self::Text(_, text) => text.is_empty(),
            Self::Pair(..) => false,
            Self::Number(_, number) => **number == 0,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Bytes(tag, bytes) => encoding::bytes::encoded_len(tag, bytes),
            Self::Text(tag, text) => encoding::string::encoded_len(tag, text),
            Self::Pair(_, pair) => 1 + delimited(pair_fields(pair).map(Field::len).sum()),
            Self::Number(tag, number) => encoding::uint64::encoded_len(tag, number),
        }
    }

    fn encode(self, bytes: &mut Vec<u8>) {
        match self {
            Self::Bytes(tag, field) => encoding::bytes::encode(tag, field, bytes),
            Self::Text(tag, text) => encoding::string::encode(tag, text, bytes),
            Self::Pair(tag, pair) => {
                begin(tag, pair_fields(pair).map(Field::len).sum(), bytes);
                pair_fields(pair).for_each(|field| field.encode(bytes));
            }
            Self::Number(tag, number) => encoding::uint64::encode(tag, number, bytes),
        }
    }
}

/// The fields of a [`super::Header`].
fn pair_fields((name, value): &(String, String)) -> impl Iterator<Item = Field<'_>> {
    [Field::Text(1, name), Field::Text(2, value)].into_iter().filter(|field| !field.is_default())
}

/// The size of `length` bytes with their length before them; the tags used here take one byte more.
fn delimited(length: usize) -> usize {
    encoding::encoded_len_varint(length as u64) + length
}

fn begin(tag: u32, length: usize, bytes: &mut Vec<u8>) {
    encoding::encode_key(tag, WireType::LengthDelimited, bytes);
    encoding::encode_varint(length as u64, bytes);
}
