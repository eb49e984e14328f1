//! Names, types and shapes of an ONNX file's inputs and outputs, read without a runtime.
//!
//! An ONNX file is one protobuf message; of its fields only the graph's inputs, outputs and the names of its weights are read
//! (field numbers from the published onnx.proto). So a model that does not fit is refused before anything is loaded.

/// One input or output: name and the shape of one item (all axes but the first, the batch). An axis of an output that the
/// exporter left open is 0 here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphPort {
    /// Name in the graph.
    pub name: String,
    /// Shape without the batch axis.
    pub item: Vec<usize>,
}

impl GraphPort {
    /// Numbers per item.
    pub fn item_len(&self) -> usize {
        self.item.iter().product()
    }
}

/// The interface of a network; every port is f32 with a dynamic batch axis first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// Inputs in file order, weights left out.
    pub inputs: Vec<GraphPort>,
    /// Outputs in file order.
    pub outputs: Vec<GraphPort>,
    /// Symbol of the batch axis.
    pub batch_name: Option<String>,
}

/// Why a file is no usable graph.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Not protobuf, or cut short.
    #[error("not an ONNX file, or cut short (at byte {0})")]
    Malformed(usize),
    /// Readable, and not what is needed here.
    #[error("{port}: {what}")]
    Port {
        /// Name of the input or output.
        port: String,
        /// What is wrong with it.
        what: String,
    },
}

const FLOAT: u64 = 1;

impl Graph {
    /// Reads the interface.
    ///
    /// # Errors
    /// Where the bytes are no ONNX model, a port is not f32 with a dynamic first axis, or an input has other dynamic axes.
    pub fn parse(bytes: &[u8]) -> Result<Self, GraphError> {
        let mut graph = None;
        for field in Fields::new(bytes) {
            if let (7, Value::Bytes(b)) = field? {
                graph = Some(b);
            }
        }
        let (mut weights, mut inputs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for field in Fields::new(graph.ok_or(GraphError::Malformed(bytes.len()))?) {
            match field? {
                (5, Value::Bytes(b)) => weights.push(text(b, 8)?),
                (11, Value::Bytes(b)) => inputs.push(b),
                (12, Value::Bytes(b)) => outputs.push(b),
                _ => {}
            }
        }
        let read = |list: Vec<&[u8]>, open: bool| -> Result<Vec<(GraphPort, Option<String>)>, GraphError> {
            let mut ports = Vec::new();
            for info in list {
                if !weights.contains(&text(info, 1)?) {
                    ports.push(port(info, open)?);
                }
            }
            Ok(ports)
        };
        let (inputs, outputs) = (read(inputs, false)?, read(outputs, true)?);
        let batch_name = inputs.first().and_then(|(_, name)| name.clone());
        let strip = |ports: Vec<(GraphPort, Option<String>)>| ports.into_iter().map(|(p, _)| p).collect();
        Ok(Self { inputs: strip(inputs), outputs: strip(outputs), batch_name })
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of one protobuf message.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn varint(&mut self) -> Result<u64, GraphError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(GraphError::Malformed(self.at))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(GraphError::Malformed(self.at))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], GraphError> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)).filter(|&e| e <= self.bytes.len());
        let end = end.ok_or(GraphError::Malformed(self.at))?;
        let cut = &self.bytes[self.at..end];
        self.at = end;
        Ok(cut)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), GraphError> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(GraphError::Malformed(self.at)),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), GraphError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

fn find(message: &[u8], number: u64) -> Result<Option<&[u8]>, GraphError> {
    for field in Fields::new(message) {
        if let (n, Value::Bytes(b)) = field?
            && n == number
        {
            return Ok(Some(b));
        }
    }
    Ok(None)
}

fn text(message: &[u8], number: u64) -> Result<String, GraphError> {
    Ok(find(message, number)?.map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default())
}

/// A ValueInfo: name (1), type (2) holding a tensor type (1) with element type (1) and shape (2) of dimensions (1).
fn port(info: &[u8], open: bool) -> Result<(GraphPort, Option<String>), GraphError> {
    let name = text(info, 1)?;
    let wrong = |what: &str| GraphError::Port { port: name.clone(), what: what.to_owned() };
    let tensor = find(info, 2)?.map(|t| find(t, 1)).transpose()?.flatten().ok_or_else(|| wrong("not a tensor"))?;
    let (mut element, mut dims) = (0, Vec::new());
    for field in Fields::new(tensor) {
        match field? {
            (1, Value::Number(n)) => element = n,
            (2, Value::Bytes(shape)) => {
                for dim in Fields::new(shape) {
                    if let (1, Value::Bytes(d)) = dim? {
                        dims.push(dimension(d)?);
                    }
                }
            }
            _ => {}
        }
    }
    if element != FLOAT {
        return Err(wrong("element type is not float32"));
    }
    let Some((first, rest)) = dims.split_first() else {
        return Err(wrong("has no shape"));
    };
    if first.0.is_some() {
        return Err(wrong("first axis is fixed; export the model with a dynamic batch axis"));
    }
    let item: Option<Vec<usize>> = rest.iter().map(|(n, _)| n.or(open.then_some(0))).collect();
    let item = item.ok_or_else(|| wrong("only the first axis may be dynamic"))?;
    Ok((GraphPort { name, item }, first.1.clone()))
}

/// A dimension: a value (1) or a symbol (2).
fn dimension(message: &[u8]) -> Result<(Option<usize>, Option<String>), GraphError> {
    let mut dim = (None, None);
    for field in Fields::new(message) {
        match field? {
            (1, Value::Number(n)) => dim.0 = usize::try_from(n).ok(),
            (2, Value::Bytes(b)) => dim.1 = Some(String::from_utf8_lossy(b).into_owned()),
            _ => {}
        }
    }
    Ok(dim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &[u8] = include_bytes!("../runtime/selftest.onnx");

    #[test]
    fn inputs_and_outputs_are_read_and_weights_left_out() {
        let graph = Graph::parse(SMALL).unwrap();
        assert_eq!(graph.inputs, [GraphPort { name: "x".into(), item: vec![2, 5, 5, 5] }]);
        assert_eq!(graph.outputs, [GraphPort { name: "y".into(), item: vec![1, 5, 5, 5] }]);
        assert_eq!(graph.batch_name.as_deref(), Some("N"));
    }

    #[test]
    fn every_truncation_is_an_error_or_lacks_a_port_and_never_a_panic() {
        for n in 0..SMALL.len() {
            if let Ok(graph) = Graph::parse(&SMALL[..n]) {
                assert_eq!(graph, Graph::parse(SMALL).unwrap(), "only trailing fields may be missing at {n}");
            }
        }
        assert!(Graph::parse(b"<html>not a model</html>").is_err());
    }
}
