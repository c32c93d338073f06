//! JSON that is indented where people look and compact where lists are long.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Levels that are indented; what lies deeper (the votes on an image, an interval) stays on one line. With hundreds of
/// members and errors, one vote a line would be most of the report.
const INDENTED_LEVELS: usize = 3;

/// Writes `value`, and a line break at its end.
pub fn to_text(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Indented::default()))?;
    bytes.push(b'\n');
    Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
}

/// A [`PrettyFormatter`] down to a level.
#[derive(Default)]
struct Indented {
    pretty: PrettyFormatter<'static>,
    level: usize,
}

impl Indented {
    fn is_indented(&self) -> bool {
        self.level <= INDENTED_LEVELS
    }

    fn separate<W: ?Sized + Write>(writer: &mut W, is_first: bool) -> io::Result<()> {
        writer.write_all(if is_first { b"" } else { b", " })
    }
}

impl Formatter for Indented {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.level += 1;
        if self.is_indented() { self.pretty.begin_array(writer) } else { writer.write_all(b"[") }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if self.is_indented() {
            self.pretty.begin_array_value(writer, is_first)
        } else {
            Self::separate(writer, is_first)
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.is_indented() { self.pretty.end_array_value(writer) } else { Ok(()) }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let is_indented = self.is_indented();
        self.level -= 1;
        if is_indented { self.pretty.end_array(writer) } else { writer.write_all(b"]") }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.level += 1;
        if self.is_indented() { self.pretty.begin_object(writer) } else { writer.write_all(b"{") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if self.is_indented() {
            self.pretty.begin_object_key(writer, is_first)
        } else {
            Self::separate(writer, is_first)
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        if self.is_indented() { self.pretty.end_object_value(writer) } else { Ok(()) }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let is_indented = self.is_indented();
        self.level -= 1;
        if is_indented { self.pretty.end_object(writer) } else { writer.write_all(b"}") }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deep_lists_stay_on_one_line() {
        let value =
            json!({ "a": [{ "votes": [1, 2, 3], "empty": [], "class": { "x": 1, "y": "z" } }], "b": {}, "c": [] });
        let expected = r#"{
  "a": [
    {
      "class": {"x": 1, "y": "z"},
      "empty": [],
      "votes": [1, 2, 3]
    }
  ],
  "b": {},
  "c": []
}
"#;
        assert_eq!(to_text(&value).unwrap(), expected);
        assert_eq!(serde_json::from_str::<serde_json::Value>(expected).unwrap(), value);
    }
}
