//! Which trace a request belongs to, for who collects traces: the context of W3C Trace Context.
//!
//! A trace is for people who look for time. What is wrong with one is no reason to refuse a request: it is left out.

use std::{fmt, str::FromStr};

/// Bytes on the wire: trace, span, flags.
const BYTES: usize = 16 + 8 + 1;

/// The flag *sampled*, the only one that is passed on.
const SAMPLED: u8 = 1;

/// The span that a request is sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl TraceContext {
    /// The span `span` of `trace`; `None` when either is zero, which stands for none.
    pub fn new(trace: [u8; 16], span: [u8; 8], sampled: bool) -> Option<Self> {
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, sampled })
    }

    /// The trace.
    pub const fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// The span.
    pub const fn span(&self) -> [u8; 8] {
        self.span
    }

    /// Whether its spans are to be collected.
    pub const fn is_sampled(&self) -> bool {
        self.sampled
    }

    fn to_bytes(self) -> Vec<u8> {
        [&self.trace[..], &self.span, &[u8::from(self.sampled)]].concat()
    }

    /// Of a field of a request; `None` when it is none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, flags) = rest.split_first_chunk()?;
        Self::new(*trace, *span, flags.first()? & SAMPLED != 0)
    }
}

/// The field of a request; empty without one.
pub(crate) fn trace_bytes(context: Option<TraceContext>) -> Vec<u8> {
    context.map(TraceContext::to_bytes).unwrap_or_default()
}

/// As in a `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (hex::encode(self.trace), hex::encode(self.span));
        write!(f, "00-{trace}-{span}-{:02x}", u8::from(self.sampled))
    }
}

/// It is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no trace context")]
pub struct NoTrace;

/// Of a `traceparent` header; a later version may say more after what is known here.
impl FromStr for TraceContext {
    type Err = NoTrace;

    fn from_str(header: &str) -> Result<Self, NoTrace> {
        let mut parts = header.split('-');
        let version: [u8; 1] = decoded(parts.next())?;
        let (trace, span, flags) = (decoded(parts.next())?, decoded(parts.next())?, decoded(parts.next())?);
        let may_say_more = version > [0];
        if version == [0xff] || (parts.next().is_some() && !may_say_more) {
            return Err(NoTrace);
        }
        let [flags]: [u8; 1] = flags;
        Self::new(trace, span, flags & SAMPLED != 0).ok_or(NoTrace)
    }
}

/// Lower-case hexadecimal digits of exactly so many bytes.
fn decoded<const N: usize>(digits: Option<&str>) -> Result<[u8; N], NoTrace> {
    let digits = digits.filter(|digits| !digits.bytes().any(|digit| digit.is_ascii_uppercase())).ok_or(NoTrace)?;
    let mut bytes = [0; N];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| NoTrace)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers() {
        let known = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context: TraceContext = known.parse().expect("as in the specification");
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), known);
        let table = [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", true, "not sampled"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", false, "version 0 has four parts"),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", true, "a later one may have more"),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", false, "no version"),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", false, "no trace"),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", false, "no span"),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", false, "upper case"),
            ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", false, "too short"),
            ("", false, "empty"),
        ];
        for (header, is_one, why) in table {
            assert_eq!(header.parse::<TraceContext>().is_ok(), is_one, "{why}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled: bool) {
            if let Some(context) = TraceContext::new(trace, span, sampled) {
                prop_assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
                prop_assert_eq!(context.to_string().parse(), Ok(context));
            }
        }

        #[test]
        fn noise_is_left_out(bytes in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,60}") {
            prop_assume!(bytes.len() != BYTES);
            prop_assert_eq!(TraceContext::from_bytes(&bytes), None);
            let _parsed = text.parse::<TraceContext>();
        }
    }
}
