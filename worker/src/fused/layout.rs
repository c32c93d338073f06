//! Which networks the hand-written engine trains, and where it finds their parts.

use plurality_common::recipe::{
    DropoutScaling, Layer, Optimiser, Recipe,
    shape::{Plan, PlannedLayer, Shape},
};

use super::activation::Activation;

/// Edge of the pools that the engine computes: a window's four positions fit the registers of one pass.
const POOL: u32 = 2;

/// A network of the lecture's family: blocks of convolution, pool and activation, then fully connected layers.
#[derive(Clone, PartialEq, Debug)]
pub struct Layout {
    /// The blocks, in order; none for a network of fully connected layers alone.
    pub blocks: Vec<Block>,
    /// The fully connected layers, at least one.
    pub stack: Vec<Dense>,
}

/// Valid convolution of stride 1, maximum over 2×2 windows, bias, activation.
#[derive(Clone, PartialEq, Debug)]
pub struct Block {
    /// Name of the convolution in checkpoints, such as `conv1`.
    pub name: String,
    /// Channels of the input.
    pub channels: usize,
    /// Columns of the input.
    pub columns: usize,
    /// Values of the input.
    pub inputs: usize,
    /// Channels of the output.
    pub filters: usize,
    /// Edge of the kernel.
    pub kernel: usize,
    /// Rows and columns of the output.
    pub pooled: [usize; 2],
    /// What follows the pool.
    pub activation: Activation,
}

/// A fully connected layer.
#[derive(Clone, PartialEq, Debug)]
pub struct Dense {
    /// Name in checkpoints, such as `fc1`.
    pub name: String,
    /// Values of the input.
    pub inputs: usize,
    /// Values of the output.
    pub outputs: usize,
    /// Dropout on the input.
    pub dropout: Option<Dropout>,
    /// What follows; nothing after the last.
    pub activation: Option<Activation>,
}

/// Dropout on the input of a fully connected layer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Dropout {
    /// Position among the network's dropout layers, from 0.
    pub layer: usize,
    /// What inputs are multiplied by in evaluation.
    pub evaluation_factor: f32,
}

impl Layout {
    /// Recognises a network that the engine can train; `None` for all others.
    pub fn of(recipe: &Recipe, plan: &Plan) -> Option<Self> {
        if !matches!(recipe.optimiser, Optimiser::Sgd { .. }) {
            return None;
        }
        let mut rest = plan.layers.iter().peekable();
        let mut blocks = Vec::new();
        while let Some(conv) = rest.next_if(|layer| matches!(layer.layer, Layer::Conv { .. })) {
            blocks.push(block(conv, rest.next()?, rest.next()?)?);
        }
        let mut dropouts = 0..;
        let mut stack: Vec<Dense> = Vec::new();
        while rest.peek().is_some() {
            let rate = rest.next_if_map(|layer| match layer.layer {
                Layer::Dropout { rate } => Ok(rate),
                _ => Err(layer),
            });
            let dropout = rate.map(|rate| Dropout {
                layer: dropouts.next().expect("integers do not end"),
                evaluation_factor: match recipe.network.dropout_scaling {
                    DropoutScaling::Training => 1.0,
                    DropoutScaling::Evaluation => (1.0 - rate) as f32,
                },
            });
            let linear = rest.next()?;
            let Layer::Linear { outputs } = linear.layer else { return None };
            let activation = match rest.next() {
                Some(layer) => Some(Activation::of(&layer.layer)?),
                None => None,
            };
            stack.push(Dense {
                name: linear.name.clone()?,
                inputs: linear.input.values(),
                outputs: outputs as usize,
                dropout,
                activation,
            });
        }
        // The last layer's outputs are the logits.
        stack.last().is_some_and(|last| last.activation.is_none()).then_some(Self { blocks, stack })
    }
}

fn block(conv: &PlannedLayer, pool: &PlannedLayer, activation: &PlannedLayer) -> Option<Block> {
    let Layer::Conv { filters, kernel, stride: 1, padding: 0 } = conv.layer else { return None };
    let (Layer::MaxPool { size: POOL }, Shape::Spatial { channels, columns, .. }) = (&pool.layer, conv.input) else {
        return None;
    };
    let Shape::Spatial { rows: pooled_rows, columns: pooled_columns, .. } = pool.output else { return None };
    Some(Block {
        name: conv.name.clone()?,
        channels,
        columns,
        inputs: conv.input.values(),
        filters: filters as usize,
        kernel: kernel as usize,
        pooled: [pooled_rows, pooled_columns],
        activation: Activation::of(&activation.layer)?,
    })
}

impl Block {
    /// Returns the windows of the pool, which are the output's positions.
    #[inline(always)]
    pub fn positions(&self) -> usize {
        self.pooled[0] * self.pooled[1]
    }

    /// Returns the values of the output.
    pub fn outputs(&self) -> usize {
        self.positions() * self.filters
    }

    /// Returns the values of one row of a kernel, which lie side by side in a channels-last input.
    #[inline(always)]
    pub fn segment(&self) -> usize {
        self.kernel * self.channels
    }

    /// Returns for each output position where the four positions under it begin in the input, in the order in which the first
    /// of equal values wins.
    pub fn starts(&self) -> Vec<[usize; 4]> {
        let line = self.columns * self.channels;
        let starts = |position| {
            let [row, column] = [position / self.pooled[1], position % self.pooled[1]];
            let first = 2 * row * line + 2 * column * self.channels;
            [first, first + self.channels, first + line, first + line + self.channels]
        };
        (0..self.positions()).map(starts).collect()
    }

    /// Returns how far each row of a kernel is from its first, in the input.
    pub fn lines(&self) -> Vec<usize> {
        (0..self.kernel).map(|row| row * self.columns * self.channels).collect()
    }
}
