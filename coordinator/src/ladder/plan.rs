//! What is to be trained for the rows: which runs, of which members, by which recipes.

use std::{cmp::Ordering, fmt, str::FromStr};

use plurality_common::{
    digest::Digest,
    recipe::{Recipe, Schedule},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::rows::{Figure, ROWS, Row, VOTE_MEMBERS};

/// Most passes that a recipe may have.
const PASSES_MAX: f64 = 10_000.0;

/// What the passes of a schedule are multiplied by: finite and above 0.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Scale(f64);

/// A number cannot be a scale.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("expected a number above 0, such as 0.1 for a tenth of the passes, found {found:?}")]
pub struct ParseScaleError {
    found: String,
}

/// Rows that were named are not there.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PlanError {
    /// No such row.
    #[error("row {name:?} is unknown, expected some of {}", ROWS.map(|row| row.name).join(", "))]
    UnknownRow {
        /// As given.
        name: String,
    },
    /// The row's recipe is not built in.
    #[error("row {row:?} needs the recipe {recipe:?}, which is not built in")]
    NoRecipe {
        /// The row.
        row: &'static str,
        /// Its recipe.
        recipe: &'static str,
    },
}

/// What is trained by one recipe.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// The recipe with its passes scaled.
    pub recipe: Recipe,
    /// Digest of the built-in recipe, unscaled.
    pub recipe_sha256: Digest,
    /// One run each, by the numbers of their members. Votes are those of the first ones.
    pub portions: Vec<Portion>,
    /// The rows that it serves.
    pub shares: Vec<Share>,
}

/// The members of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Portion {
    /// Number of the first.
    pub first: u32,
    /// How many.
    pub size: u32,
}

/// What one row takes of a job: its first networks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// The row.
    pub row: &'static Row,
    /// How many networks.
    pub networks: u32,
}

impl Scale {
    /// A schedule as it is.
    pub const ONE: Self = Self(1.0);

    /// Takes a finite number above 0.
    ///
    /// # Errors
    /// For any other.
    pub fn new(number: f64) -> Result<Self, ParseScaleError> {
        if number.is_finite() && number > 0.0 {
            Ok(Self(number))
        } else {
            Err(ParseScaleError { found: number.to_string() })
        }
    }

    /// Returns what becomes of `passes`: at least one.
    fn passes(self, passes: u32) -> u32 {
        (f64::from(passes) * self.0).round().clamp(1.0, PASSES_MAX) as u32
    }

    /// Returns the words for a table; empty for a schedule as it is.
    pub fn words(self) -> String {
        match self.cmp(&Self::ONE) {
            Ordering::Less => format!("shortened to {self}"),
            Ordering::Equal => String::new(),
            Ordering::Greater => format!("lengthened to {self}"),
        }
    }
}

impl Eq for Scale {}

impl PartialOrd for Scale {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scale {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Scale {
    type Err = ParseScaleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse().map_err(|_| ParseScaleError { found: text.to_owned() })?;
        Self::new(number)
    }
}

impl TryFrom<f64> for Scale {
    type Error = ParseScaleError;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        Self::new(number)
    }
}

impl From<Scale> for f64 {
    fn from(scale: Scale) -> Self {
        scale.0
    }
}

/// Returns the rows called `names` in the ladder's order, each once; all of none.
///
/// # Errors
/// When a name is not a row's.
pub fn rows(names: &[String]) -> Result<Vec<&'static Row>, PlanError> {
    if let Some(name) = names.iter().find(|name| super::rows::by_name(name).is_none()) {
        return Err(PlanError::UnknownRow { name: name.clone() });
    }
    let is_named = |row: &&Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.iter().filter(is_named).collect())
}

/// Returns what a row takes when each network row is to have `seeds` networks: a vote takes fives of them, at least one.
pub fn share(row: &'static Row, seeds: u32) -> Share {
    let networks = match row.figure {
        Figure::Network => seeds,
        Figure::Vote => (seeds / VOTE_MEMBERS).max(1) * VOTE_MEMBERS,
    };
    Share { row, networks }
}

/// Works out what is to be trained for `rows`. Rows of one recipe share its networks.
///
/// # Errors
/// When a recipe is not built in.
pub fn jobs(
    rows: &[&'static Row],
    seeds: u32,
    scale: Scale,
    recipe: impl Fn(&str) -> Option<Recipe>,
) -> Result<Vec<Job>, PlanError> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for &row in rows {
        let share = share(row, seeds);
        if let Some(index) = names.iter().position(|name| *name == row.recipe) {
            jobs[index].shares.push(share);
        } else {
            let unscaled = recipe(row.recipe).ok_or(PlanError::NoRecipe { row: row.name, recipe: row.recipe })?;
            let (recipe_sha256, recipe) = (unscaled.digest(), scaled(unscaled, scale));
            jobs.push(Job { recipe, recipe_sha256, portions: Vec::new(), shares: vec![share] });
            names.push(row.recipe);
        }
    }
    for job in &mut jobs {
        job.portions = portions(&job.shares);
    }
    Ok(jobs)
}

/// Divides members into runs: the report of a run has the vote of exactly its own members.
fn portions(shares: &[Share]) -> Vec<Portion> {
    let most = |figure: Figure| {
        let of_kind = shares.iter().filter(|share| share.row.figure == figure);
        of_kind.map(|share| share.networks).max().unwrap_or(0)
    };
    let (voting, networks) = (most(Figure::Vote), most(Figure::Network));
    let votes = (0..voting).step_by(VOTE_MEMBERS as usize).map(|first| Portion { first, size: VOTE_MEMBERS });
    let rest = (networks > voting).then(|| Portion { first: voting, size: networks - voting });
    votes.chain(rest).collect()
}

/// Multiplies the passes of a recipe and of the steps of its learning rate; it gets another name and says so.
/// Everything else stays, early stopping included.
fn scaled(mut recipe: Recipe, scale: Scale) -> Recipe {
    if scale != Scale::ONE {
        let passes = recipe.training.epochs;
        recipe.training.epochs = scale.passes(passes);
        if let Schedule::Step { every, .. } = &mut recipe.schedule {
            *every = scale.passes(*every);
        }
        recipe.summary =
            format!("The recipe `{}` with {} passes instead of {passes}.", recipe.name, recipe.training.epochs);
        recipe.name += "-scaled";
    }
    recipe
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::{builtin, parse::recipe_from_json};

    use super::*;

    /// A recipe of that name: what it trains does not matter here.
    fn stand_in(name: &str) -> Option<Recipe> {
        let recipe = builtin::by_name("smoke")?;
        Some(Recipe { name: name.to_owned(), ..recipe })
    }

    fn planned(names: &[&str], seeds: u32, scale: f64) -> Vec<Job> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        jobs(&rows(&names).unwrap(), seeds, Scale::new(scale).unwrap(), stand_in).unwrap()
    }

    fn check(names: &[&str], seeds: u32, portions: &[(u32, u32)], networks: &[u32]) {
        let jobs = planned(names, seeds, 1.0);
        assert_eq!(jobs.len(), 1, "{names:?}");
        let found: Vec<_> = jobs[0].portions.iter().map(|portion| (portion.first, portion.size)).collect();
        assert_eq!(found, portions, "{names:?} with {seeds} seeds");
        let found: Vec<_> = jobs[0].shares.iter().map(|share| share.networks).collect();
        assert_eq!(found, networks, "{names:?} with {seeds} seeds");
    }

    #[test]
    fn a_row_is_one_run_and_votes_are_runs_of_five() {
        check(&["fc100"], 3, &[(0, 3)], &[3]);
        check(&["ensemble"], 1, &[(0, 5)], &[5]);
        check(&["ensemble"], 12, &[(0, 5), (5, 5)], &[10]);
    }

    #[test]
    fn networks_of_dropout_vote_too() {
        check(&["dropout", "ensemble"], 3, &[(0, 5)], &[3, 5]);
        check(&["dropout", "ensemble"], 5, &[(0, 5)], &[5, 5]);
        check(&["ensemble", "dropout"], 12, &[(0, 5), (5, 5), (10, 2)], &[12, 10]);
    }

    #[test]
    fn all_rows_come_in_the_ladders_order_each_once() {
        assert_eq!(rows(&[]).unwrap().len(), ROWS.len());
        let named = rows(&["conv2", "fc100", "conv2"].map(str::to_owned)).unwrap();
        assert_eq!(named.iter().map(|row| row.name).collect::<Vec<_>>(), ["fc100", "conv2"]);
        assert_eq!(planned(&[], 1, 1.0).len(), ROWS.len() - 1, "one recipe serves two rows");
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let error = rows(&["conv3".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("\"conv3\"") && ROWS.iter().all(|row| error.contains(row.name)), "{error}");
        let error = jobs(&rows(&[]).unwrap(), 1, Scale::ONE, |_| None).unwrap_err();
        assert_eq!(error.to_string(), "row \"fc100\" needs the recipe \"fc100\", which is not built in");
    }

    #[test]
    fn a_scaled_recipe_says_so_and_has_another_digest_and_name() {
        let plain = &planned(&["fc100"], 1, 1.0)[0];
        assert_eq!(plain.recipe, stand_in("fc100").unwrap());
        for (scale, passes) in [(0.5, 2), (0.001, 1), (2.0, 8), (1e9, 10_000)] {
            let job = &planned(&["fc100"], 1, scale)[0];
            assert_eq!((job.recipe.training.epochs, job.recipe_sha256), (passes, plain.recipe_sha256), "{scale}");
            assert_ne!(job.recipe.digest(), plain.recipe.digest());
            assert!(recipe_from_json(&job.recipe.to_canonical_json()).is_ok(), "{scale}");
        }
        let half = &planned(&["fc100"], 1, 0.5)[0].recipe;
        assert_eq!(half.name, "fc100-scaled");
        assert_eq!(half.summary, "The recipe `fc100` with 2 passes instead of 4.");
    }

    #[test]
    fn scales_are_above_0_and_worded() {
        for wrong in ["0", "-1", "NaN", "inf", "", "much"] {
            assert!(wrong.parse::<Scale>().is_err(), "{wrong}");
        }
        let words = |text: &str| text.parse::<Scale>().unwrap().words();
        assert_eq!([words("0.1"), words("1"), words("2")], ["shortened to 0.1", "", "lengthened to 2"]);
    }
}
