package arrowipc

import "fmt"

// The fields of the tables of a schema that are followed, the types that hold
// something of variable size, and what a schema may grow to when it is decoded.
const (
	schemaFields   = 1
	schemaMetadata = 2
	fieldName      = 0
	fieldTypeKind  = 2
	fieldType      = 3
	fieldChildren  = 5
	fieldMetadata  = 6
	pairKey        = 0
	pairValue      = 1
	timestampZone  = 1
	unionIDs       = 1

	kindTimestamp = 10
	kindUnion     = 14

	maxSchema = 64 << 20
	maxDepth  = 64
	fieldCost = 256
	pairCost  = 64
)

// checkSchema refuses a schema that would cost a decoder more than maxSchema bytes.
// Tables and strings may be shared, so that a few hundred bytes can stand for 2^64
// fields, and arrow-go allocates what a vector's length says before it looks.
func checkSchema(metadata []byte) error {
	msg, ok := rootTable(metadata)
	if !ok {
		return errMetadata
	}
	schema, ok := msg.tableField(messageHeader)
	if !ok {
		return errMetadata
	}
	c := schemaCheck{left: maxSchema}
	if err := c.fields(schema, schemaFields, maxDepth); err != nil {
		return err
	}
	return c.pairs(schema, schemaMetadata)
}

// schemaCheck walks a schema; left is what it may still cost, in bytes.
type schemaCheck struct{ left int64 }

func (c *schemaCheck) spend(n int64) error {
	if c.left -= n; c.left < 0 {
		return fmt.Errorf("arrowipc: a schema would take more than %d bytes", maxSchema)
	}
	return nil
}

// vector charges for a vector and returns it.
func (c *schemaCheck) vector(t table, field, width int, cost int64) (vector, error) {
	v, ok := t.vectorField(field, width)
	if !ok {
		return vector{}, errMetadata
	}
	return v, c.spend(cost * int64(v.n))
}

func (c *schemaCheck) fields(t table, field, depth int) error {
	children, err := c.vector(t, field, 4, fieldCost)
	if err != nil || children.n == 0 {
		return err
	}
	if depth == 0 {
		return fmt.Errorf("arrowipc: a schema nests deeper than %d", maxDepth)
	}
	for i := range children.n {
		child, ok := children.table(i)
		if !ok {
			return errMetadata
		}
		if err := c.field(child, depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *schemaCheck) field(t table, depth int) error {
	if _, err := c.vector(t, fieldName, 1, 1); err != nil {
		return err
	}
	if err := c.typeOf(t); err != nil {
		return err
	}
	if err := c.pairs(t, fieldMetadata); err != nil {
		return err
	}
	return c.fields(t, fieldChildren, depth-1)
}

func (c *schemaCheck) typeOf(t table) error {
	kind, ok := t.uint8Field(fieldTypeKind)
	if !ok {
		return errMetadata
	}
	if kind != kindTimestamp && kind != kindUnion {
		return nil
	}
	typ, ok := t.tableField(fieldType)
	if !ok {
		return errMetadata
	}
	var err error
	if kind == kindTimestamp {
		_, err = c.vector(typ, timestampZone, 1, 1)
	} else {
		_, err = c.vector(typ, unionIDs, 4, 4)
	}
	return err
}

func (c *schemaCheck) pairs(t table, field int) error {
	pairs, err := c.vector(t, field, 4, pairCost)
	if err != nil {
		return err
	}
	for i := range pairs.n {
		pair, ok := pairs.table(i)
		if !ok {
			return errMetadata
		}
		for _, f := range []int{pairKey, pairValue} {
			if _, err := c.vector(pair, f, 1, 1); err != nil {
				return err
			}
		}
	}
	return nil
}
