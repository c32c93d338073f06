//! From `--recipe NAME|FILE` to a recipe.

use std::{fs, io, path::PathBuf};

use plurality_common::recipe::{
    Recipe, builtin,
    parse::{RecipeError, recipe_from_toml},
};
use thiserror::Error;

/// Largest recipe file read; the longest of ours has some sixty lines.
const RECIPE_BYTES_MAX: u64 = 256 * 1024;

/// Why there is no recipe; the user's mistake.
#[derive(Debug, Error)]
pub enum RecipeChoiceError {
    /// Neither a built-in recipe nor a file.
    #[error("recipe {name:?} is neither built in nor a file; built in are {}", builtin::NAMES.join(", "))]
    Unknown {
        /// As given.
        name: String,
    },
    /// The file cannot be read.
    #[error("recipe file {path:?} cannot be read")]
    Read {
        /// As given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is far too long to be a recipe.
    #[error("recipe file {path:?} has {found} bytes, expected at most {RECIPE_BYTES_MAX}")]
    TooLarge {
        /// As given.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// The file is not a recipe.
    #[error(transparent)]
    Parse(#[from] RecipeError),
}

/// Returns the built-in recipe of that name, else reads the file of that name.
///
/// # Errors
/// When there is neither, or the file is not a recipe.
pub fn choose(name: &str) -> Result<Recipe, RecipeChoiceError> {
    if let Some(recipe) = builtin::by_name(name) {
        return Ok(recipe);
    }
    let path = PathBuf::from(name);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RecipeChoiceError::Unknown { name: name.to_owned() });
        }
        Err(source) => return Err(RecipeChoiceError::Read { path, source }),
    };
    if metadata.len() > RECIPE_BYTES_MAX {
        return Err(RecipeChoiceError::TooLarge { path, found: metadata.len() });
    }
    let text = fs::read_to_string(&path).map_err(|source| RecipeChoiceError::Read { path, source })?;
    Ok(recipe_from_toml(name, &text)?)
}
