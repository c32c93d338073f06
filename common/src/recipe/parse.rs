//! Reads recipes: as people write them, in TOML, and as they travel, in JSON.
//!
//! Both become one tree of values, are checked against one table of what is allowed, and only then become a [`Recipe`].
//! A message names file, line (of TOML), key, the value found and what is allowed.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};
use thiserror::Error;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Recipe,
    schema::{Problem, check_together, check_tree, element_key, join_key},
};

/// Longest recipe read: hundreds of times the longest of ours.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// The file name in messages about JSON, which has no file.
const JSON_NAME: &str = "recipe";

/// Where a recipe is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// The line, from 1; none for JSON.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A recipe cannot be used. Layers count from 1 in keys: `network.layers[1].kind`.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RecipeError {
    /// The text is too long to be a recipe.
    #[error("{place}: recipe is {bytes} bytes, expected at most {TEXT_BYTES_MAX}")]
    TooLong {
        /// Which file.
        place: Place,
        /// Its length.
        bytes: usize,
    },
    /// The text is not TOML or JSON.
    #[error("{place}: {reason}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the reader says.
        reason: String,
    },
    /// There is no such key.
    #[error("{place}: unknown key {key}, expected one of {allowed}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The key with its tables.
        key: String,
        /// Keys that exist there.
        allowed: String,
    },
    /// A key is absent.
    #[error("{place}: key {key} is missing, expected {allowed}")]
    MissingKey {
        /// Where its table begins.
        place: Place,
        /// The key with its tables.
        key: String,
        /// What it may be.
        allowed: String,
    },
    /// A value is not allowed.
    #[error("{place}: {key} is {found}, expected {allowed}")]
    Value {
        /// Where.
        place: Place,
        /// The key with its tables.
        key: String,
        /// The value.
        found: String,
        /// What it may be.
        allowed: String,
    },
}

/// Reads a recipe as people write it.
///
/// # Errors
/// When the text is not TOML, a key is unknown or missing, or a value is not allowed, alone or beside the others.
pub fn recipe_from_toml(file_name: &str, text: &str) -> Result<Recipe, RecipeError> {
    let mut source = Source { file: file_name, text, lines: BTreeMap::new() };
    source.check_length()?;
    let table = DeTable::parse(text).map_err(|error| RecipeError::Syntax {
        place: source.place(error.span().map(|span| span.start)),
        reason: error.message().to_owned(),
    })?;
    let tree = source.table(table.get_ref(), "")?;
    source.recipe(tree)
}

/// Reads a recipe as it travels and is stored; any JSON with the same content will do.
///
/// # Errors
/// When the text is not JSON, and as [`recipe_from_toml`].
pub fn recipe_from_json(text: &str) -> Result<Recipe, RecipeError> {
    let source = Source { file: JSON_NAME, text, lines: BTreeMap::new() };
    source.check_length()?;
    match serde_json::from_str(text) {
        Ok(tree) => source.recipe(tree),
        Err(error) => Err(RecipeError::Syntax { place: source.place(None), reason: error.to_string() }),
    }
}

/// A text being read.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
    /// In which line each key was seen.
    lines: BTreeMap<String, usize>,
}

impl Source<'_> {
    fn check_length(&self) -> Result<(), RecipeError> {
        match self.text.len() {
            0..=TEXT_BYTES_MAX => Ok(()),
            bytes => Err(RecipeError::TooLong { place: self.place(None), bytes }),
        }
    }

    fn place(&self, offset: Option<usize>) -> Place {
        Place { file: self.file.to_owned(), line: offset.map(|offset| self.line(offset)) }
    }

    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// Turns a tree that was checked nowhere into a recipe that was checked everywhere.
    fn recipe(&self, tree: Value) -> Result<Recipe, RecipeError> {
        check_tree(&tree).map_err(|problem| self.error(problem))?;
        let recipe: Recipe = serde_json::from_value(tree)
            .map_err(|error| RecipeError::Syntax { place: self.place(None), reason: error.to_string() })?;
        check_together(&recipe).map_err(|problem| self.error(problem))?;
        Ok(recipe)
    }

    fn error(&self, problem: Problem) -> RecipeError {
        match problem {
            Problem::Unknown { key, allowed } => RecipeError::UnknownKey { place: self.place_of(&key), key, allowed },
            Problem::Missing { key, allowed } => RecipeError::MissingKey { place: self.place_of(&key), key, allowed },
            Problem::Value { key, found, allowed } => {
                RecipeError::Value { place: self.place_of(&key), key, found, allowed }
            }
        }
    }

    /// Finds the line of a key, or of the innermost table around it that was written.
    fn place_of(&self, key: &str) -> Place {
        let mut around = key;
        let line = loop {
            if let Some(line) = self.lines.get(around) {
                break Some(*line);
            }
            match around.rfind(['.', '[']) {
                Some(end) => around = &around[..end],
                None => break None,
            }
        };
        Place { file: self.file.to_owned(), line }
    }

    fn table(&mut self, table: &DeTable<'_>, at: &str) -> Result<Value, RecipeError> {
        let mut tree = Map::new();
        for (name, value) in table {
            let key = join_key(at, name.get_ref());
            self.lines.insert(key.clone(), self.line(name.span().start));
            tree.insert(name.get_ref().to_string(), self.value(value, &key)?);
        }
        Ok(Value::Object(tree))
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Result<Value, RecipeError> {
        let (found, allowed) = match value.get_ref() {
            DeValue::String(text) => return Ok(Value::String(text.to_string())),
            DeValue::Boolean(flag) => return Ok(Value::Bool(*flag)),
            DeValue::Table(table) => return self.table(table, key),
            DeValue::Array(elements) => {
                let mut list = Vec::with_capacity(elements.len());
                for (index, element) in elements.iter().enumerate() {
                    let key = element_key(key, index);
                    self.lines.insert(key.clone(), self.line(element.span().start));
                    list.push(self.value(element, &key)?);
                }
                return Ok(Value::Array(list));
            }
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => return Ok(Value::from(number)),
                Err(_) => (number.to_string(), "a number below 2^63"),
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                // Value::from would turn what JSON cannot say into null.
                Ok(number) if number.is_finite() => return Ok(Value::from(number)),
                _ => (number.as_str().to_owned(), "a finite number"),
            },
            DeValue::Datetime(date) => (date.to_string(), "a value that is not a date"),
        };
        let place = self.place(Some(value.span().start));
        Err(RecipeError::Value { place, key: key.to_owned(), found, allowed: allowed.to_owned() })
    }
}
