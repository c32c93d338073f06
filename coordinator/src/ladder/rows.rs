//! The rows of the ladder. Source: A. Schönhuth, "Biological Applications of Deep Learning 5: CNNs in practice" (2022), after
//! M. Nielsen, *Neural Networks and Deep Learning*, chapters 3 and 6.

/// Networks that the lecture's ensemble has.
pub const VOTE_MEMBERS: u32 = 5;

/// One system of the lecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its name; but for votes also its recipe's.
    pub name: &'static str,
    /// The built-in recipe that its networks are trained by.
    pub recipe: &'static str,
    /// The published test accuracy in per cent, with the words that go with it.
    pub published: &'static str,
    /// Whose accuracy it is.
    pub figure: Figure,
    /// How much of the recipe the lecture says.
    pub source: Source,
}

/// Whose test accuracy a row states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// That of one network.
    Network,
    /// That of the plurality vote of [`VOTE_MEMBERS`] networks.
    Vote,
}

/// How much of a recipe the lecture says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// All of it.
    Lecture,
    /// Network and data; what it leaves open is our choice.
    OwnChoices,
}

/// All rows, in the lecture's order.
pub const ROWS: [Row; 18] = [
    exact("fc100", "97.80"),
    open("fc-deep", "about 98"),
    exact("conv1", "98.78"),
    exact("conv1-l2pool", "–"),
    exact("conv2", "99.06"),
    open("conv2-tanh", "near conv2"),
    exact("conv2-relu", "99.23"),
    exact("shift", "99.37"),
    open("elastic", "99.6"),
    exact("shift-fc300", "99.46"),
    exact("shift-fc1000", "99.43"),
    exact("shift-2fc100", "99.43"),
    exact("shift-2fc300", "99.48"),
    exact("shift-2fc1000", "99.47"),
    exact("dropout", "99.60"),
    Row { name: "ensemble", recipe: "dropout", published: "99.67", figure: Figure::Vote, source: Source::Lecture },
    open("lenet5", "99.2 (99.05 without distortions)"),
    open("deep-mlp", "99.65"),
];

const fn exact(name: &'static str, published: &'static str) -> Row {
    Row { name, recipe: name, published, figure: Figure::Network, source: Source::Lecture }
}

const fn open(name: &'static str, published: &'static str) -> Row {
    Row { source: Source::OwnChoices, ..exact(name, published) }
}

/// Returns the row of that name.
pub fn by_name(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

impl Row {
    /// Returns the published accuracy in per cent, if it is a number.
    pub fn published_percent(&self) -> Option<f64> {
        self.published.split(' ').next()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use plurality_common::recipe::builtin;

    use super::*;

    #[test]
    fn names_are_told_apart_and_numbers_read() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
            assert!(row.published_percent().is_none_or(|percent| (97.0..100.0).contains(&percent)), "{}", row.name);
        }
        let numbers = ROWS.iter().filter(|row| row.published_percent().is_some()).count();
        assert_eq!(numbers, 15, "all but fc-deep, conv1-l2pool and conv2-tanh");
        assert_eq!(by_name("lenet5").and_then(Row::published_percent), Some(99.2));
    }

    #[test]
    fn every_row_has_a_recipe() {
        let absent: Vec<_> = ROWS.iter().filter(|row| builtin::by_name(row.recipe).is_none()).collect();
        assert!(absent.is_empty(), "{absent:?}");
    }
}
