//! Functions for the columns of the tables: volumes and overlaps of packed masks, and regions of the atlas.
//!
//! Masks are those of the table `masks`: one bit per voxel of the model's grid, which lies in MNI space. A volume in the scan's
//! own space therefore needs its registration. Where an argument is null, so is the result. A function refuses masks of unequal
//! length, and lists that are no spacing or no affine.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, DocSection, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;

use crate::preprocess::region;
use crate::tables::affine_from_row_major;

const SECTION: DocSection = DocSection {
    include: true,
    label: "Masks and Regions",
    description: Some("Functions for the columns of the tables"),
};

/// What an argument is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mask,
    Numbers,
    Number,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Mask => DataType::Binary,
            Self::Numbers => DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true))),
            Self::Number => DataType::Float64,
        }
    }

    /// True where an argument of this type may be given.
    fn takes(self, given: &DataType) -> bool {
        use DataType as T;
        let number = |given: &T| given.is_numeric() || given == &T::Null;
        match self {
            Self::Mask => matches!(given, T::Binary | T::LargeBinary | T::BinaryView | T::Null),
            Self::Numbers => match given {
                T::List(of) | T::LargeList(of) | T::FixedSizeList(of, _) => number(of.data_type()),
                given => given == &T::Null,
            },
            Self::Number => number(given),
        }
    }
}

/// An argument: its name, what it is, and its meaning.
type Argument = (&'static str, Kind, &'static str);

const MASK: Argument = ("mask", Kind::Mask, "packed mask: masks.mask or masks.brain");
const SPACING: Argument = ("spacing", Kind::Numbers, "voxel size along x, y and z, mm: masks.spacing_mm");
const REGISTRATION: Argument =
    ("registration", Kind::Numbers, "affine from the scan's own space to MNI space: scans.registration_affine");
const ONE: Argument = ("a", Kind::Mask, "packed mask");
const OTHER: Argument = ("b", Kind::Mask, "packed mask on the same grid");

/// What a function computes for its arguments as columns of one length.
type Compute = fn(&[ArrayRef]) -> Result<ArrayRef>;

/// A function as SQL knows it.
struct Definition {
    name: &'static str,
    arguments: &'static [Argument],
    returns: DataType,
    doc: &'static str,
    example: &'static str,
    compute: Compute,
}

static DEFINITIONS: [Definition; 5] = [
    Definition {
        name: "mask_ml_mni",
        arguments: &[MASK, SPACING],
        returns: DataType::Float64,
        doc: "Volume of a mask in MNI space, ml. The head of the template is larger than most: see mask_ml_native",
        example: "SELECT scan_id, mask_ml_mni(brain, spacing_mm) FROM masks",
        compute: |columns| numbers(columns, |row| Ok(count(row.mask(0)) as f64 * voxel_ml(&row.numbers(1)?)?)),
    },
    Definition {
        name: "mask_ml_native",
        arguments: &[MASK, SPACING, REGISTRATION],
        returns: DataType::Float64,
        doc: "Volume of a mask in the scan's own space, ml, as scans.anomaly_volume_ml has it",
        example: "SELECT scan_id, mask_ml_native(mask, spacing_mm, registration_affine) FROM masks JOIN scans USING (run_id, scan_id)",
        compute: |columns| {
            numbers(columns, |row| {
                let ml = count(row.mask(0)) as f64 * voxel_ml(&row.numbers(1)?)?;
                Ok(ml / scale(&row.numbers(2)?)?)
            })
        },
    },
    Definition {
        name: "mask_dice",
        arguments: &[ONE, OTHER],
        returns: DataType::Float64,
        doc: "Dice coefficient of two masks: twice the voxels of both over the sum of their voxels; 1 where both are empty",
        example: "SELECT mask_dice(a.mask, b.mask) FROM masks a, masks b WHERE a.scan_id = 'study/one' AND b.scan_id = 'study/two'",
        compute: |columns| {
            numbers(columns, |row| {
                let (a, b) = (row.mask(0), row.mask(1));
                let (both, sum) = (overlap(a, b)?, count(a) + count(b));
                Ok(if sum == 0 { 1.0 } else { 2.0 * both as f64 / sum as f64 })
            })
        },
    },
    Definition {
        name: "mask_overlap_ml",
        arguments: &[ONE, OTHER, SPACING],
        returns: DataType::Float64,
        doc: "Volume that two masks share, in MNI space, ml",
        example: "SELECT scan_id, mask_overlap_ml(mask, brain, spacing_mm) FROM masks",
        compute: |columns| {
            numbers(columns, |row| Ok(overlap(row.mask(0), row.mask(1))? as f64 * voxel_ml(&row.numbers(2)?)?))
        },
    },
    Definition {
        name: "region_at",
        arguments: &[
            ("x", Kind::Number, "MNI position, mm, increasing to the right"),
            ("y", Kind::Number, "MNI position, mm, increasing to the front"),
            ("z", Kind::Number, "MNI position, mm, increasing to the top"),
        ],
        returns: DataType::Utf8,
        doc: "Brain region at a place in MNI space, 'outside' where none is within 10 mm",
        example: "SELECT region_at(-20, -10, 60)",
        compute: regions,
    },
];

/// The functions by which SQL reads masks and places.
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    static ALL: LazyLock<Vec<Arc<ScalarUDF>>> = LazyLock::new(|| {
        let udf = |index| {
            Arc::new(ScalarUDF::from(Function { index, signature: Signature::user_defined(Volatility::Immutable) }))
        };
        (0..DEFINITIONS.len()).map(udf).collect()
    });
    ALL.iter().cloned()
}

/// Adds the functions to a session.
pub fn register_functions(context: &SessionContext) {
    functions().for_each(|function| context.register_udf(function.as_ref().clone()));
}

/// A function of the engine.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    /// In [`DEFINITIONS`].
    index: usize,
    signature: Signature,
}

impl Function {
    fn definition(&self) -> &'static Definition {
        &DEFINITIONS[self.index]
    }
}

impl Definition {
    /// `mask_dice(a, b)`.
    fn syntax(&self) -> String {
        let names: Vec<_> = self.arguments.iter().map(|(name, ..)| *name).collect();
        format!("{}({})", self.name, names.join(", "))
    }

    fn documentation(&self) -> Documentation {
        let builder = Documentation::builder(SECTION, self.doc, self.syntax()).with_sql_example(self.example);
        self.arguments.iter().fold(builder, |builder, (name, _, doc)| builder.with_argument(*name, *doc)).build()
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.definition().name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.definition().returns.clone())
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let definition = self.definition();
        let taken = definition.arguments;
        if given.len() != taken.len() || taken.iter().zip(given).any(|((_, kind, _), given)| !kind.takes(given)) {
            let given: Vec<_> = given.iter().map(ToString::to_string).collect();
            let meanings = taken.iter().map(|(name, _, doc)| format!("{name}: {doc}")).collect::<Vec<_>>().join("; ");
            return Err(DataFusionError::Plan(format!(
                "{} was given ({}); {meanings}",
                definition.syntax(),
                given.join(", ")
            )));
        }
        Ok(taken.iter().map(|(_, kind, _)| kind.data_type()).collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let one = args.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let named = |error: DataFusionError| {
            DataFusionError::Execution(format!("{}: {}", self.name(), error.strip_backtrace()))
        };
        let values = (self.definition().compute)(&columns).map_err(named)?;
        Ok(match one {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&values, 0)?),
            false => ColumnarValue::Array(values),
        })
    }

    fn documentation(&self) -> Option<&Documentation> {
        static ALL: LazyLock<Vec<Documentation>> =
            LazyLock::new(|| DEFINITIONS.iter().map(Definition::documentation).collect());
        ALL.get(self.index)
    }
}

/// The arguments of one row, of which none is null.
struct Row<'a> {
    columns: &'a [ArrayRef],
    row: usize,
}

impl Row<'_> {
    fn mask(&self, column: usize) -> &[u8] {
        self.columns[column].as_binary::<i32>().value(self.row)
    }

    fn numbers(&self, column: usize) -> Result<Vec<f64>> {
        let list: &ListArray = self.columns[column].as_list();
        let values = list.value(self.row);
        if values.null_count() > 0 {
            return Err(DataFusionError::Execution("a list holds a null; expected numbers".into()));
        }
        Ok(values.as_primitive::<Float64Type>().values().to_vec())
    }
}

/// A number for each row; null where an argument is.
fn numbers(columns: &[ArrayRef], of: impl Fn(Row) -> Result<f64>) -> Result<ArrayRef> {
    let value = |row| match columns.iter().any(|column| column.is_null(row)) {
        true => Ok(None),
        false => of(Row { columns, row }).map(Some),
    };
    let rows = columns.first().map_or(0, |column| column.len());
    Ok(Arc::new((0..rows).map(value).collect::<Result<Float64Array>>()?))
}

fn regions(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let of = |row| {
        let place = [0, 1, 2].map(|axis| columns[axis].as_primitive::<Float64Type>());
        let given = place.iter().all(|column| column.is_valid(row) && column.value(row).is_finite());
        given.then(|| region(place.map(|column| column.value(row))))
    };
    Ok(Arc::new((0..columns[0].len()).map(of).collect::<StringArray>()))
}

/// The voxels of a mask.
fn count(mask: &[u8]) -> u64 {
    mask.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// The voxels of both masks.
fn overlap(a: &[u8], b: &[u8]) -> Result<u64> {
    if a.len() != b.len() {
        return Err(DataFusionError::Execution(format!(
            "the masks have {} and {} bytes; only masks on the same grid can be compared",
            a.len(),
            b.len()
        )));
    }
    Ok(a.iter().zip(b).map(|(a, b)| u64::from((a & b).count_ones())).sum())
}

/// The volume of a voxel.
fn voxel_ml(spacing: &[f64]) -> Result<f64> {
    match spacing {
        [x, y, z] if spacing.iter().all(|mm| mm.is_finite() && *mm > 0.0) => Ok(x * y * z / 1000.0),
        _ => Err(DataFusionError::Execution(format!(
            "the spacing is {spacing:?}; expected the voxel size along x, y and z, mm"
        ))),
    }
}

/// How many times larger a volume is in MNI space than in the scan's own.
fn scale(registration: &[f64]) -> Result<f64> {
    let affine = affine_from_row_major(registration).filter(|_| registration.len() == 12);
    let scale = affine.map(|affine| affine.determinant3().abs());
    scale.filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
        DataFusionError::Execution(format!(
            "the registration is {registration:?}; expected the 12 numbers of an invertible affine, row by row"
        ))
    })
}

#[cfg(test)]
mod tests {
    use crate::tables::pack_bits;

    use super::*;

    /// What a query gives, as text.
    async fn answer(sql: &str) -> Result<String> {
        let context = SessionContext::new();
        register_functions(&context);
        let rows = context.sql(sql).await?.collect().await?;
        Ok(arrow::util::display::array_value_to_string(rows[0].column(0), 0)?)
    }

    async fn number(sql: &str) -> f64 {
        answer(sql).await.unwrap().parse().unwrap()
    }

    /// Two masks as literals of SQL: i² mod 7 < 3 and i mod 5 < 2, for i from 0 to 1002.
    fn masks() -> [String; 2] {
        let inside: [fn(u32) -> bool; 2] = [|i| i * i % 7 < 3, |i| i % 5 < 2];
        inside.map(|inside| {
            let bits: Vec<u8> = (0..1003).map(|i| u8::from(inside(i))).collect();
            format!("X'{}'", crate::hex::hexadecimal(&pack_bits(&bits)))
        })
    }

    const SPACING: &str = "[1.5, 1.25, 2.0]";
    /// Its axes are turned and mirrored, as those of a scan stored in the order P, S, R.
    const REGISTRATION: &str = "[-1.1, 0.02, 0.03, 90, 0.01, 0.05, 1.2, -126, 0.04, 0.95, -0.06, -72]";

    // The figures are numpy 2.4.6's: `packbits(…, bitorder="little")` has the same bytes, `a.sum() * spacing.prod() / 1000`,
    // that over `abs(linalg.det(registration[:, :3]))`, and `2 * (a & b).sum() / (a.sum() + b.sum())`.
    #[tokio::test]
    async fn volumes_and_overlaps_are_those_of_numpy() {
        let [a, b] = masks();
        assert!(a.starts_with("X'dbed76bbdd6eb7db") && b.starts_with("X'638c31c618638c31"), "{a} {b}");
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        near(number(&format!("SELECT mask_ml_mni({a}, {SPACING})")).await, 2.68875);
        near(number(&format!("SELECT mask_ml_native({a}, {SPACING}, {REGISTRATION})")).await, 2.1364770833780296);
        near(number(&format!("SELECT mask_overlap_ml({a}, {b}, {SPACING})")).await, 1.08);
        assert_eq!(number(&format!("SELECT mask_dice({a}, {b})")).await, 0.514745308310992);
        assert_eq!(number(&format!("SELECT mask_dice({a}, {a})")).await, 1.0);
        assert_eq!(number("SELECT mask_dice(X'00', X'00')").await, 1.0);
        near(number("SELECT sum(mask_ml_mni(m, [1, 1, 1])) FROM (VALUES (X'ff'), (NULL), (X'01')) v(m)").await, 0.009);
    }

    #[tokio::test]
    async fn places_have_their_region_and_none_where_a_coordinate_is_none() {
        for (place, region) in [
            ("-20, -10, 84", "left frontal lobe"),
            ("20.0, -112.0, -4", "right occipital lobe"),
            ("0, 0, 500", "outside"),
            ("0, 0, NULL", ""),
            ("0, 0, 'NaN'::DOUBLE", ""),
        ] {
            assert_eq!(answer(&format!("SELECT region_at({place})")).await.unwrap(), region, "{place}");
        }
    }

    #[tokio::test]
    async fn wrong_arguments_are_refused_with_what_was_given() {
        for (sql, words) in [
            ("mask_dice(X'00', X'0000')", ["1 and 2 bytes", "same grid"]),
            ("mask_overlap_ml(X'0000', X'00', [1, 1, 1])", ["2 and 1 bytes", "same grid"]),
            ("mask_ml_mni(X'00', [1, 1])", ["[1.0, 1.0]", "x, y and z"]),
            ("mask_ml_mni(X'00', [1, 1, 0])", ["0.0]", "x, y and z"]),
            ("mask_ml_mni(X'00', [1, 1, NULL])", ["null", "numbers"]),
            ("mask_ml_native(X'00', [1, 1, 1], [1, 2, 3])", ["12 numbers", "[1.0, 2.0, 3.0]"]),
            ("mask_ml_native(X'00', [1, 1, 1], [1,0,0,0, 1,0,0,0, 0,0,1,0])", ["12 numbers", "invertible"]),
            ("mask_dice(X'00')", ["mask_dice(a, b)", "packed mask"]),
            ("mask_dice(X'00', 'text')", ["mask_dice(a, b)", "Utf8"]),
            ("region_at(1, 2)", ["region_at(x, y, z)", "MNI position"]),
        ] {
            let error = answer(&format!("SELECT {sql}")).await.unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)) && !error.contains("Internal"), "{sql}: {error}");
        }
    }

    #[test]
    fn every_function_is_documented() {
        for function in functions() {
            let doc = function.documentation().unwrap();
            assert!(doc.syntax_example.starts_with(function.name()) && !doc.description.is_empty(), "{doc:?}");
            assert!(doc.sql_example.as_ref().is_some_and(|example| example.contains(function.name())), "{doc:?}");
        }
    }
}
