//! What was trained for the rows: the file `ladder.json`.

use jiff::Timestamp;
use plurality_common::{attempt::DeterminismClass, digest::Digest, score::Count};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    plan::Scale,
    rows::{ROWS, Row},
};

/// Name and version of the file's format, the value of the key `format`.
pub const LADDER_FORMAT: &str = "plurality-ladder/1";

/// What the project itself has trained.
const OWN: &str = include_str!("../../../docs/results/ladder.json");

/// All results, by the order of the rows, longer trainings first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ladder {
    /// [`LADDER_FORMAT`].
    pub format: String,
    /// The command that added the last result; empty before the first.
    pub command: String,
    /// At most one of each row and scale.
    pub results: Vec<RowResult>,
}

/// What was trained for one row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowResult {
    /// Name of the row.
    pub row: String,
    /// Digest of the built-in recipe, unscaled.
    pub recipe_sha256: Digest,
    /// What its passes were multiplied by.
    pub scale: Scale,
    /// Passes of its schedule after that.
    pub passes: u32,
    /// The seed that the networks' own are derived from.
    pub seed: u64,
    /// Each network, by its number.
    pub networks: Vec<NetworkFigure>,
    /// Each vote, if the row is one: of the first five networks, the next five, and so on.
    pub votes: Vec<Count>,
    /// What the networks were trained on, each once.
    pub classes: Vec<DeterminismClass>,
    /// The commit of the folder that the command ran in.
    pub commit: String,
    /// When the last network was verified.
    pub finished: Timestamp,
}

/// One network of a row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFigure {
    /// `SEED/NUMBER`.
    pub seed: String,
    /// Test images that the coordinator found to be labelled right by the kept checkpoint.
    pub test: Count,
    /// CPU seconds of the whole training, as the trainer measures it.
    pub train_cpu_seconds: f64,
}

/// A number of accuracies in short.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Summary {
    /// How many.
    pub n: usize,
    /// Their mean, 0..1.
    pub mean: f64,
    /// Sample standard deviation; absent for one.
    pub sd: Option<f64>,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// A file is not a ladder.
#[derive(Debug, Error)]
pub enum LadderError {
    /// Another format or version.
    #[error("format is {found:?}, expected {LADDER_FORMAT:?}")]
    Format {
        /// What it says.
        found: String,
    },
    /// Not JSON, or other keys.
    #[error("it is no list of results")]
    Json(#[from] serde_json::Error),
}

impl Default for Ladder {
    fn default() -> Self {
        Self { format: LADDER_FORMAT.to_owned(), command: String::new(), results: Vec::new() }
    }
}

impl Ladder {
    /// Returns what the project itself has trained.
    pub fn own() -> Self {
        Self::from_json(OWN).expect("a test reads the file")
    }

    /// Reads what [`Self::to_json`] writes.
    ///
    /// # Errors
    /// When the text is of another format or malformed.
    pub fn from_json(text: &str) -> Result<Self, LadderError> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        let Head { format } = serde_json::from_str(text)?;
        if format != LADDER_FORMAT {
            return Err(LadderError::Format { found: format });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// Returns it as JSON with a line break at the end.
    pub fn to_json(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a ladder holds only text, finite numbers and lists");
        format!("{text}\n")
    }

    /// Returns the results of `row`, longer trainings first.
    pub fn of<'a>(&'a self, row: &Row) -> impl Iterator<Item = &'a RowResult> + use<'a> {
        let name = row.name;
        self.results.iter().filter(move |result| result.row == name)
    }

    /// Says whether there is a result of the same row, recipe, scale, seed and number of networks.
    pub fn has(&self, row: &Row, recipe_sha256: Digest, scale: Scale, seed: u64, networks: u32) -> bool {
        self.of(row).any(|result| {
            result.recipe_sha256 == recipe_sha256
                && result.scale == scale
                && result.seed == seed
                && result.networks.len() == networks as usize
        })
    }

    /// Takes a result in. It takes the place of that of the same row and scale; those of other scales stay.
    pub fn put(&mut self, result: RowResult) {
        self.results.retain(|other| (&other.row, other.scale) != (&result.row, result.scale));
        self.results.push(result);
        let place = |result: &RowResult| ROWS.iter().position(|row| row.name == result.row);
        self.results.sort_by(|left, right| {
            let by_row = place(left).cmp(&place(right)).then_with(|| left.row.cmp(&right.row));
            by_row.then_with(|| right.scale.cmp(&left.scale))
        });
    }
}

impl RowResult {
    /// Returns the accuracies that the row states: of its votes if it is one, else of its networks.
    pub fn summary(&self) -> Summary {
        if self.votes.is_empty() {
            Summary::of(&self.networks.iter().map(|network| network.test.accuracy()).collect::<Vec<_>>())
        } else {
            Summary::of(&self.votes.iter().map(Count::accuracy).collect::<Vec<_>>())
        }
    }

    /// Returns the mean CPU seconds of a network's training.
    pub fn core_seconds(&self) -> f64 {
        let sum: f64 = self.networks.iter().map(|network| network.train_cpu_seconds).sum();
        sum / self.networks.len().max(1) as f64
    }
}

impl Summary {
    /// Sums `values` up; of none all is 0.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            n,
            mean,
            sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min: values.iter().copied().reduce(f64::min).unwrap_or(0.0),
            max: values.iter().copied().reduce(f64::max).unwrap_or(0.0),
        }
    }

    /// Returns mean and standard deviation in per cent: `99.57 ± 0.03`.
    pub fn text(&self) -> String {
        match self.sd {
            Some(sd) => format!("{:.2} ± {:.2}", self.mean * 100.0, sd * 100.0),
            None => format!("{:.2}", self.mean * 100.0),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A result of `row` whose networks label so many of 10,000 images right.
    pub fn result(row: &str, scale: f64, correct: &[u32]) -> RowResult {
        let network = |(number, &correct): (usize, &u32)| NetworkFigure {
            seed: format!("1/{number}"),
            test: Count { correct, total: 10_000 },
            train_cpu_seconds: 100.0 + number as f64,
        };
        RowResult {
            row: row.to_owned(),
            recipe_sha256: Digest::of(row.as_bytes()),
            scale: Scale::new(scale).unwrap(),
            passes: 60,
            seed: 1,
            networks: correct.iter().enumerate().map(network).collect(),
            votes: Vec::new(),
            classes: vec![DeterminismClass {
                libtorch_version: "2.11.0".to_owned(),
                device_model: "AMD EPYC".to_owned(),
                instruction_set: "AVX2".to_owned(),
                threads: 1,
                flags: String::new(),
                trainer_version: "0.1.0".to_owned(),
            }],
            commit: "0123456".to_owned(),
            finished: "2001-02-03T04:05:06Z".parse().unwrap(),
        }
    }

    #[test]
    fn accuracies_are_summed_up_as_by_hand() {
        let summary = result("conv1", 1.0, &[9870, 9880, 9890]).summary();
        assert_eq!((summary.n, summary.min, summary.max), (3, 0.987, 0.989));
        assert_eq!(summary.text(), "98.80 ± 0.10");
        assert_eq!(result("conv1", 1.0, &[9870]).summary().text(), "98.70");
        let mut vote = result("ensemble", 1.0, &[9950; 5]);
        vote.votes = vec![Count { correct: 9967, total: 10_000 }];
        assert_eq!((vote.summary().text().as_str(), vote.summary().n), ("99.67", 1));
        assert_eq!(vote.core_seconds(), 102.0);
    }

    #[test]
    fn a_scaled_result_stands_beside_the_full_one() {
        let mut ladder = Ladder::default();
        for (row, scale, correct) in
            [("conv2", 1.0, 9906), ("fc100", 0.1, 9500), ("fc100", 1.0, 9780), ("fc100", 0.1, 9600)]
        {
            ladder.put(result(row, scale, &[correct]));
        }
        let found: Vec<_> = ladder.results.iter().map(|one| (one.row.as_str(), one.networks[0].test.correct)).collect();
        assert_eq!(found, [("fc100", 9780), ("fc100", 9600), ("conv2", 9906)]);
    }

    #[test]
    fn only_a_result_of_the_same_request_is_not_trained_again() {
        let mut ladder = Ladder::default();
        ladder.put(result("fc100", 1.0, &[9780, 9790]));
        let row = super::super::rows::by_name("fc100").unwrap();
        let (digest, scale) = (Digest::of(b"fc100"), Scale::new(1.0).unwrap());
        assert!(ladder.has(row, digest, scale, 1, 2));
        assert!(!ladder.has(row, Digest::of(b"edited"), scale, 1, 2));
        assert!(!ladder.has(row, digest, Scale::new(0.5).unwrap(), 1, 2));
        assert!(!ladder.has(row, digest, scale, 2, 2));
        assert!(!ladder.has(row, digest, scale, 1, 3));
        assert!(!ladder.has(super::super::rows::by_name("conv1").unwrap(), digest, scale, 1, 2));
    }

    #[test]
    fn a_ladder_is_read_back_as_it_was_and_others_are_refused() {
        let mut ladder = Ladder::default();
        ladder.put(result("fc100", 0.3, &[9780, 9791]));
        assert_eq!(Ladder::from_json(&ladder.to_json()).unwrap(), ladder);
        let newer = ladder.to_json().replace("ladder/1", "ladder/2");
        assert!(matches!(Ladder::from_json(&newer), Err(LadderError::Format { found }) if found.ends_with("/2")));
        for wrong in ["", "[]", &ladder.to_json().replace("\"votes\"", "\"voices\"")] {
            assert!(matches!(Ladder::from_json(wrong), Err(LadderError::Json(_))), "{wrong}");
        }
    }

    #[test]
    fn the_projects_own_results_can_be_read() {
        assert_eq!(Ladder::own().to_json(), OWN);
    }
}
