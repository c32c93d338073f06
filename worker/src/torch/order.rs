//! In which order training images come.

use plurality_common::{
    recipe::{Order, Recipe},
    seed::{Purpose, shuffled, stream},
};

/// Returns the positions `0..images_per_epoch` in the order in which pass `epoch` goes through them.
///
/// With [`Order::OncePerRun`] every member and every pass gets the same order.
pub fn of_pass(recipe: &Recipe, run_seed: u64, member: u32, epoch: u32) -> Vec<u32> {
    let count = u32::try_from(recipe.images_per_epoch()).expect("a recipe's images are checked to fit 32 bits");
    let mut rng = match recipe.training.order {
        Order::EachPass => stream(run_seed, Some(member), Purpose::Order, u64::from(epoch)),
        Order::OncePerRun => stream(run_seed, None, Purpose::Order, 0),
    };
    shuffled(count, &mut rng)
}
