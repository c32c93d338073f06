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

#[cfg(test)]
mod tests {
    use plurality_common::recipe::Augmentation;

    use super::*;
    use crate::testing;

    #[test]
    fn each_pass_and_member_has_its_own_order_of_all_positions() {
        let recipe = testing::recipe(testing::DROPOUT_LAYERS);
        let order = of_pass(&recipe, 1, 0, 0);
        assert_eq!(order, of_pass(&recipe, 1, 0, 0));
        assert_ne!(order, of_pass(&recipe, 1, 0, 1));
        assert_ne!(order, of_pass(&recipe, 1, 1, 0));
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..24).collect::<Vec<_>>());
    }

    /// Positions computed by an independent implementation of ChaCha8.
    #[test]
    fn the_first_batches_of_a_seed_are_the_golden_ones() {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        assert_eq!(of_pass(&recipe, 7, 0, 0)[..7], [15, 23, 8, 17, 0, 5, 21]);
        recipe.training.order = Order::OncePerRun;
        assert_eq!(of_pass(&recipe, 7, 0, 0)[..7], [17, 10, 18, 21, 13, 8, 4]);
    }

    #[test]
    fn the_lectures_order_is_one_shuffle_of_all_five_variants_for_every_member_and_pass() {
        let mut recipe = testing::recipe(testing::DROPOUT_LAYERS);
        recipe.training.order = Order::OncePerRun;
        recipe.data.augmentation = Augmentation::OnePixelShiftFixed;
        let order = of_pass(&recipe, 1, 0, 0);
        assert_eq!(order.len(), 5 * 24);
        assert_eq!(order, of_pass(&recipe, 1, 3, 17));
        assert_ne!(order, of_pass(&recipe, 2, 0, 0));
    }
}
