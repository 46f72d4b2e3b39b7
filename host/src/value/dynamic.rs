//! Values whose types are known only from a component: wasmtime's `Val`, encoded and decoded by `Type`. For small
//! user records; interfaces that carry many bytes have typed clients instead (a `Val` costs 40 bytes per byte).

use super::{ENCODED_BYTES_MAX, Reader, Writer, invalid};
use crate::call::CallError;
use bytes::Bytes;
use wasmtime::component::{Type, Val};

/// Values, counted through all nesting, that one call may carry. Bounds the memory of decoding (about 100 bytes each).
const VALS_MAX: usize = 1 << 20;
/// Nesting of types. WIT types can not recur; validation stops at 100.
const DEPTH_MAX: u32 = 100;

/// Encodes `vals`, which must be of `types`, one after the other.
pub fn encode_vals(vals: &[Val], types: &[Type]) -> Result<Bytes, CallError> {
    if vals.len() != types.len() {
        return Err(invalid(format!("{} values were given, {} are expected", vals.len(), types.len())));
    }
    let mut w = Writer::new();
    for (val, ty) in vals.iter().zip(types) {
        put(&mut w, val, ty)?;
    }
    Ok(w.finish())
}

/// Decodes values of `types`; the bytes must hold exactly these.
pub fn decode_vals(bytes: &Bytes, types: &[Type]) -> Result<Vec<Val>, CallError> {
    let mut from = Source { reader: Reader::new(bytes.clone()), vals_left: VALS_MAX };
    let vals = types.iter().map(|ty| from.take(ty, 0)).collect::<Result<Vec<_>, _>>()?;
    from.reader.finish()?;
    Ok(vals)
}

fn put(w: &mut Writer, val: &Val, ty: &Type) -> Result<(), CallError> {
    if w.len() > ENCODED_BYTES_MAX {
        return Err(CallError::TooLarge(format!(
            "the values of one call are more than {ENCODED_BYTES_MAX} bytes: send less in one call"
        )));
    }
    match (val, ty) {
        (Val::Bool(v), Type::Bool) => w.put_bool(*v),
        (Val::U8(v), Type::U8) => w.put_u8(*v),
        (Val::S8(v), Type::S8) => w.put_raw(&v.to_le_bytes()),
        (Val::U16(v), Type::U16) => w.put_u16(*v),
        (Val::S16(v), Type::S16) => w.put_raw(&v.to_le_bytes()),
        (Val::U32(v), Type::U32) => w.put_u32(*v),
        (Val::S32(v), Type::S32) => w.put_raw(&v.to_le_bytes()),
        (Val::U64(v), Type::U64) => w.put_u64(*v),
        (Val::S64(v), Type::S64) => w.put_i64(*v),
        (Val::Float32(v), Type::Float32) => w.put_u32(v.to_bits()),
        (Val::Float64(v), Type::Float64) => w.put_u64(v.to_bits()),
        (Val::Char(v), Type::Char) => w.put_u32(u32::from(*v)),
        (Val::String(v), Type::String) => w.put_str(v),
        _ => return put_compound(w, val, ty),
    };
    Ok(())
}

fn put_compound(w: &mut Writer, val: &Val, ty: &Type) -> Result<(), CallError> {
    match (val, ty) {
        (Val::List(items), Type::List(list)) => {
            w.put_len(items.len());
            put_items(w, items, &list.ty())?;
        }
        (Val::FixedLengthList(items), Type::FixedLengthList(list)) => put_items(w, items, &list.ty())?,
        (Val::Map(pairs), Type::Map(map)) => {
            w.put_len(pairs.len());
            let (key, value) = (map.key(), map.value());
            for (k, v) in pairs {
                put(w, k, &key)?;
                put(w, v, &value)?;
            }
        }
        (Val::Record(fields), Type::Record(record)) if fields.len() == record.fields().len() => {
            for ((_, v), field) in fields.iter().zip(record.fields()) {
                put(w, v, &field.ty)?;
            }
        }
        (Val::Tuple(items), Type::Tuple(tuple)) if items.len() == tuple.types().len() => {
            for (v, ty) in items.iter().zip(tuple.types()) {
                put(w, v, &ty)?;
            }
        }
        (Val::Variant(name, payload), Type::Variant(variant)) => {
            let (at, case) = (0u32..).zip(variant.cases()).find(|(_, c)| c.name == name).ok_or_else(|| misfit(ty))?;
            w.put_case(at);
            put_payload(w, payload.as_deref(), case.ty, ty)?;
        }
        (Val::Enum(name), Type::Enum(names)) => {
            let (at, _) = (0u32..).zip(names.names()).find(|(_, n)| n == name).ok_or_else(|| misfit(ty))?;
            w.put_case(at);
        }
        (Val::Option(v), Type::Option(option)) => {
            w.put_case(u32::from(v.is_some()));
            put_payload(w, v.as_deref(), v.is_some().then(|| option.ty()), ty)?;
        }
        (Val::Result(v), Type::Result(result)) => {
            w.put_case(u32::from(v.is_err()));
            match v {
                Ok(v) => put_payload(w, v.as_deref(), result.ok(), ty)?,
                Err(v) => put_payload(w, v.as_deref(), result.err(), ty)?,
            }
        }
        (Val::Flags(set), Type::Flags(flags)) => {
            let mut words = vec![0u32; flags.names().len().div_ceil(32)];
            for (at, name) in flags.names().enumerate() {
                if set.iter().any(|s| s == name) {
                    words[at / 32] |= 1 << (at % 32);
                }
            }
            for word in words {
                w.put_u32(word);
            }
        }
        _ => return Err(misfit(ty)),
    }
    Ok(())
}

fn put_items(w: &mut Writer, items: &[Val], ty: &Type) -> Result<(), CallError> {
    items.iter().try_for_each(|item| put(w, item, ty))
}

fn put_payload(w: &mut Writer, val: Option<&Val>, ty: Option<Type>, of: &Type) -> Result<(), CallError> {
    match (val, ty) {
        (None, None) => Ok(()),
        (Some(v), Some(ty)) => put(w, v, &ty),
        _ => Err(misfit(of)),
    }
}

fn misfit(ty: &Type) -> CallError {
    invalid(match ty {
        Type::Own(_) | Type::Borrow(_) | Type::Future(_) | Type::Stream(_) | Type::ErrorContext => {
            "resources, streams and futures can not cross a link: pass values".to_owned()
        }
        _ => "a value does not fit its type: the two sides differ in their types".to_owned(),
    })
}

struct Source {
    reader: Reader,
    vals_left: usize,
}

impl Source {
    fn take(&mut self, ty: &Type, depth: u32) -> Result<Val, CallError> {
        if depth > DEPTH_MAX {
            return Err(invalid(format!("types nest deeper than {DEPTH_MAX}")));
        }
        self.spend(1)?;
        let r = &mut self.reader;
        Ok(match ty {
            Type::Bool => Val::Bool(r.bool()?),
            Type::U8 => Val::U8(r.u8()?),
            Type::S8 => Val::S8(r.u8()?.cast_signed()),
            Type::U16 => Val::U16(r.u16()?),
            Type::S16 => Val::S16(r.u16()?.cast_signed()),
            Type::U32 => Val::U32(r.u32()?),
            Type::S32 => Val::S32(r.u32()?.cast_signed()),
            Type::U64 => Val::U64(r.u64()?),
            Type::S64 => Val::S64(r.i64()?),
            Type::Float32 => Val::Float32(f32::from_bits(r.u32()?)),
            Type::Float64 => Val::Float64(f64::from_bits(r.u64()?)),
            Type::Char => {
                let v = r.u32()?;
                Val::Char(char::from_u32(v).ok_or_else(|| invalid(format!("{v:#x} is not a character")))?)
            }
            Type::String => Val::String(r.string()?),
            _ => self.take_compound(ty, depth + 1)?,
        })
    }

    fn take_compound(&mut self, ty: &Type, depth: u32) -> Result<Val, CallError> {
        Ok(match ty {
            Type::List(list) => {
                let len = self.reader.len(1)?;
                Val::List(self.take_items(&list.ty(), len, depth)?)
            }
            Type::FixedLengthList(list) => {
                let len = usize::try_from(list.len()).map_err(|_| misfit(ty))?;
                Val::FixedLengthList(self.take_items(&list.ty(), len, depth)?)
            }
            Type::Map(map) => {
                let len = self.reader.len(2)?;
                self.spend(len)?;
                let (key, value) = (map.key(), map.value());
                let pairs = (0..len).map(|_| Ok((self.take(&key, depth)?, self.take(&value, depth)?)));
                Val::Map(pairs.collect::<Result<_, CallError>>()?)
            }
            Type::Record(record) => Val::Record(
                record
                    .fields()
                    .map(|f| Ok((f.name.to_owned(), self.take(&f.ty, depth)?)))
                    .collect::<Result<_, CallError>>()?,
            ),
            Type::Tuple(tuple) => {
                Val::Tuple(tuple.types().map(|ty| self.take(&ty, depth)).collect::<Result<_, CallError>>()?)
            }
            Type::Variant(variant) => {
                let case = self.case(variant.cases().len())?;
                let case = variant.cases().nth(case).ok_or_else(|| misfit(ty))?;
                Val::Variant(case.name.to_owned(), self.take_payload(case.ty, depth)?)
            }
            Type::Enum(names) => {
                let case = self.case(names.names().len())?;
                Val::Enum(names.names().nth(case).ok_or_else(|| misfit(ty))?.to_owned())
            }
            Type::Option(option) => {
                let ty = (self.case(2)? == 1).then(|| option.ty());
                Val::Option(self.take_payload(ty, depth)?)
            }
            Type::Result(result) => Val::Result(match self.case(2)? {
                0 => Ok(self.take_payload(result.ok(), depth)?),
                _ => Err(self.take_payload(result.err(), depth)?),
            }),
            Type::Flags(flags) => Val::Flags(self.take_flags(&flags.names().collect::<Vec<_>>())?),
            _ => return Err(misfit(ty)),
        })
    }

    fn take_items(&mut self, ty: &Type, len: usize, depth: u32) -> Result<Vec<Val>, CallError> {
        self.spend(len)?;
        self.vals_left += len; // `take` counts each of them again
        let mut items = Vec::with_capacity(len.min(1024));
        for _ in 0..len {
            items.push(self.take(ty, depth)?);
        }
        Ok(items)
    }

    fn take_payload(&mut self, ty: Option<Type>, depth: u32) -> Result<Option<Box<Val>>, CallError> {
        ty.map(|ty| self.take(&ty, depth).map(Box::new)).transpose()
    }

    fn take_flags(&mut self, names: &[&str]) -> Result<Vec<String>, CallError> {
        let mut set = Vec::new();
        for chunk in names.chunks(32) {
            let word = self.reader.u32()?;
            if chunk.len() < 32 && word >> chunk.len() != 0 {
                return Err(invalid("a flag is set that the type does not have"));
            }
            set.extend(chunk.iter().enumerate().filter(|(at, _)| word >> at & 1 == 1).map(|(_, n)| (*n).to_owned()));
        }
        self.spend(set.len())?;
        Ok(set)
    }

    fn case(&mut self, cases: usize) -> Result<usize, CallError> {
        let case = self.reader.case(u32::try_from(cases).unwrap_or(u32::MAX))?;
        usize::try_from(case).map_err(|_| invalid("a case that this machine can not address"))
    }

    fn spend(&mut self, vals: usize) -> Result<(), CallError> {
        self.vals_left = self.vals_left.checked_sub(vals).ok_or_else(|| {
            CallError::TooLarge(format!("more than {VALS_MAX} values in one call: send less in one call"))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]

    use super::*;
    use wasmtime::component::Component;
    use wasmtime::component::types::ComponentItem;

    const WIT: &str = "package acme:test;
        interface all {
            record pair { left: u8, right: option<string> }
            variant shape { dot, circle(f64), named(pair) }
            enum color { red, green, blue }
            flags rights { read, write, run }
            f: func(
                a: bool, b: s8, c: u16, d: s16, e: u32, f: s32, g: u64, h: s64, i: f32, j: f64, k: char, l: string,
                m: list<u8>, n: list<pair>, o: tuple<u8, shape, color>, p: option<option<shape>>,
                q: result<pair, string>, r: result, s: list<rights>, t: result<_, color>,
            );
        }
        world w { import all; }";

    fn types() -> Vec<Type> {
        let engine = wasmtime::Engine::default();
        let component = Component::new(&engine, crate::engine::from_wit(WIT)).unwrap();
        let ty = component.component_type();
        let (_, import) = ty.imports(&engine).next().unwrap();
        let ComponentItem::ComponentInstance(instance) = import.ty else { panic!("no interface") };
        let function = instance.get_export(&engine, "f").unwrap();
        let ComponentItem::ComponentFunc(f) = function.ty else { panic!("no function") };
        f.params().map(|(_, ty)| ty).collect()
    }

    /// xorshift64: the same values in each run.
    struct Rng(u64);
    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
        fn below(&mut self, n: usize) -> usize {
            usize::try_from(self.next() % n as u64).unwrap()
        }
        fn bytes(&mut self, len: usize) -> Bytes {
            (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
        }
    }

    /// Random bytes decode to a value now and then: small lengths and cases are likely.
    fn likely(rng: &mut Rng) -> Bytes {
        let len = 4 * rng.below(80);
        (0..len).map(|at| if at % 4 == 0 { u8::try_from(rng.below(4)).unwrap() } else { 0 }).collect()
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes() {
        let types = types();
        let mut rng = Rng(42);
        let mut decoded = 0;
        for ty in &types {
            let ty = std::slice::from_ref(ty);
            for _ in 0..3_000 {
                // Cut to what the type takes: the first prefix that decodes.
                let bytes = likely(&mut rng);
                for len in 0..bytes.len() {
                    let prefix = bytes.slice(..len);
                    if let Ok(vals) = decode_vals(&prefix, ty) {
                        assert_eq!(encode_vals(&vals, ty).unwrap(), prefix);
                        decoded += 1;
                        break;
                    }
                }
            }
        }
        assert!(decoded > 20_000, "{decoded}");
    }

    #[test]
    fn garbage_is_an_error_never_a_panic() {
        let types = types();
        let mut rng = Rng(7);
        for _ in 0..20_000 {
            let len = rng.below(200);
            let bytes = rng.bytes(len);
            for ty in &types {
                let _ = decode_vals(&bytes, std::slice::from_ref(ty));
            }
            assert!(decode_vals(&bytes, &types).is_err());
        }
    }

    #[test]
    fn lengths_are_bounded_before_they_are_believed() {
        let types = types();
        let list_u8 = std::slice::from_ref(&types[12]);
        let mut w = Writer::new();
        w.put_bytes(&vec![0; VALS_MAX + 1]);
        assert!(matches!(decode_vals(&w.finish(), list_u8), Err(CallError::TooLarge(_))));
        assert!(matches!(decode_vals(&Bytes::from_static(&[255; 8]), list_u8), Err(CallError::Invalid(_))));
        let flag = std::slice::from_ref(&types[18]);
        assert!(decode_vals(&Bytes::from_static(&[1, 0, 0, 0, 8, 0, 0, 0]), flag).is_err());
        assert!(encode_vals(&[Val::U8(1)], list_u8).is_err());
        assert!(encode_vals(&[], list_u8).is_err());
    }
}
