//! What the API server says, no deeper than our parser goes: serde_json refuses what is nested 128 deep, and one such
//! object would take the list of all of its kind with it. What lies deeper is left out; what an object's kind allows is far
//! above that, so that the object is refused by name, and no other is disturbed.

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, combinators::MapFrame};

/// From here on values are left out: below serde_json's 128.
const DEEPEST: usize = 120;

/// What an answer's body is made into.
type Cut<B> = MapFrame<B, Box<dyn FnMut(Frame<Bytes>) -> Frame<Bytes> + Send>>;

/// For a client of Kubernetes, to map each answer by.
pub(crate) fn cut<B: Body<Data = Bytes>>(response: Response<B>) -> Response<Cut<B>> {
    let mut json = Json::default();
    response.map(|body| {
        body.map_frame(Box::new(move |frame: Frame<Bytes>| frame.map_data(|data| json.cut(data))) as _)
    })
}

/// Where in a document, or in one after another, the last byte was.
#[derive(Default)]
struct Json {
    depth: usize,
    string: bool,
    escaped: bool,
}

impl Json {
    /// What is kept of the next bytes; each value that begins too deep is `null`.
    fn cut(&mut self, bytes: Bytes) -> Bytes {
        // Almost always nothing is to be cut.
        let mut kept: Option<Vec<u8>> = None;
        for (at, byte) in bytes.iter().enumerate() {
            let before = self.depth;
            self.take(*byte);
            let deepest = before.max(self.depth);
            if deepest > DEEPEST {
                let kept = kept.get_or_insert_with(|| bytes[..at].to_vec());
                if before == DEEPEST {
                    kept.extend(b"null");
                }
            } else if let Some(kept) = &mut kept {
                kept.push(*byte);
            }
        }
        kept.map_or(bytes, Bytes::from)
    }

    fn take(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.string => self.escaped = true,
            b'"' => self.string = !self.string,
            _ if self.string => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The text as it comes out when it comes in pieces of this size.
    fn through(text: &str, piece: usize) -> String {
        let mut json = Json::default();
        let pieces = text.as_bytes().chunks(piece);
        let kept: Vec<u8> = pieces.flat_map(|piece| json.cut(Bytes::copy_from_slice(piece))).collect();
        String::from_utf8(kept).unwrap()
    }

    fn nested(depth: usize) -> String {
        format!("{}1{}", r#"{"a":["#.repeat(depth / 2), "]}".repeat(depth / 2))
    }

    #[test]
    fn what_is_shallow_enough_stays_as_it_is() {
        let quotes = r#"{"a\\":"}]\"{[","b":[{"c":null}, "\\", 1.5e3]}"#;
        for text in [quotes.to_owned(), format!("{quotes}\n{quotes}\n"), nested(DEEPEST), String::new()] {
            for piece in [1, 2, 3, 1_000] {
                assert_eq!(through(&text, piece), text);
            }
        }
    }

    #[test]
    fn what_is_too_deep_is_left_out_and_nothing_else() {
        for depth in [DEEPEST + 2, 200, 10_000] {
            let text = format!(r#"{{"deep":{},"after":["}}",{}]}}"#, nested(depth), nested(4));
            assert_eq!(serde_json::from_str::<Value>(&text).is_err(), depth >= 126);
            for piece in [1, 7, 100_000] {
                let value: Value = serde_json::from_str(&through(&text, piece)).unwrap();
                assert_eq!(value["after"], serde_json::json!(["}", {"a": [{"a": [1]}]}]));
                let mut deepest = &value["deep"];
                let mut levels = 1;
                while let Some(inner) = deepest.get("a").or_else(|| deepest.get(0)) {
                    (deepest, levels) = (inner, levels + 1);
                }
                assert_eq!((deepest, levels), (&Value::Null, DEEPEST));
            }
        }
    }
}
