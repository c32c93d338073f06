//! A network in one short line for people.

use super::{Layer, Network};

impl Network {
    /// Returns the layers but the last, which every network has, and what they have between them:
    /// `conv 20·5×5, pool, fc 100; sigmoid`.
    pub fn outline(&self) -> String {
        let hidden = self.layers.split_last().map_or(&[][..], |(_, hidden)| hidden);
        let mut pieces = Vec::new();
        let mut between: Vec<String> = Vec::new();
        for layer in hidden {
            match piece(layer) {
                Piece::Layer(text) => pieces.push(text),
                Piece::Between(text) => {
                    if !between.contains(&text) {
                        between.push(text);
                    }
                }
            }
        }
        let pieces = if pieces.is_empty() { "linear".to_owned() } else { pieces.join(", ") };
        if between.is_empty() { pieces } else { format!("{pieces}; {}", between.join(", ")) }
    }
}

/// What a layer is to the line.
enum Piece {
    /// Named in its place.
    Layer(String),
    /// Named once at the end, wherever it stands.
    Between(String),
}

fn piece(layer: &Layer) -> Piece {
    match layer {
        Layer::Conv { filters, kernel, stride, .. } => {
            let stride = if *stride == 1 { String::new() } else { format!("/{stride}") };
            Piece::Layer(format!("conv {filters}·{kernel}×{kernel}{stride}"))
        }
        Layer::MaxPool { size: 2 } => Piece::Layer("pool".to_owned()),
        Layer::MaxPool { size } => Piece::Layer(format!("pool {size}×{size}")),
        Layer::L2Pool { size: 2 } => Piece::Layer("L2 pool".to_owned()),
        Layer::L2Pool { size } => Piece::Layer(format!("L2 pool {size}×{size}")),
        Layer::Linear { outputs } => Piece::Layer(format!("fc {outputs}")),
        Layer::Dropout { rate } => Piece::Between(format!("dropout {rate}")),
        Layer::BatchNorm | Layer::Relu | Layer::Sigmoid | Layer::Tanh | Layer::ScaledTanh => {
            Piece::Between(layer.kind().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(layers: Vec<Layer>, expected: &str) {
        let layers = [layers, vec![Layer::Linear { outputs: 10 }]].concat();
        assert_eq!(Network { dropout_scaling: Default::default(), layers }.outline(), expected);
    }

    #[test]
    fn a_network_is_told_in_one_line() {
        let conv = |filters, stride| Layer::Conv { filters, kernel: 5, stride, padding: 0 };
        check(vec![], "linear");
        check(vec![Layer::Linear { outputs: 100 }, Layer::Sigmoid], "fc 100; sigmoid");
        check(
            vec![
                conv(20, 1),
                Layer::MaxPool { size: 2 },
                Layer::Relu,
                conv(40, 2),
                Layer::L2Pool { size: 3 },
                Layer::Relu,
                Layer::Dropout { rate: 0.5 },
                Layer::Linear { outputs: 1000 },
            ],
            "conv 20·5×5, pool, conv 40·5×5/2, L2 pool 3×3, fc 1000; relu, dropout 0.5",
        );
    }
}
